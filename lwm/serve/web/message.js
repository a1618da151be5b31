/** One turn of a conversation, with what can be done with it. */
import { changes } from "./answers.js";
import { copy, focused, paced, useEvent } from "./events.js";
import { Markdown } from "./markdown.js";
import { Attachment, Media } from "./media.js";
import { children, textOf } from "./tree.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";

/** Text of an answer, which may grow. */
function Text({ source }) {
  const root = useRef(/** @type {any} */ (null));
  const shown = useRef(/** @type {Markdown | null} */ (null));
  useEffect(() => {
    shown.current ??= new Markdown(root.current);
    shown.current.update(source);
  }, [source]);
  return html`<div class="markdown" ref=${root}></div>`;
}

/** Switches between branches. */
function Branches({ conversation, turn, actions }) {
  const all = children(conversation, turn.parent);
  if (all.length < 2) return null;
  const place = all.indexOf(turn);
  const go = (step) => () => actions.show(all[place + step].id);
  return html`<span class="branches" role="group" aria-label="Branches">
    <button type="button" class="plain" disabled=${place === 0} onClick=${go(-1)} aria-label="Branch before">‹</button>
    ${place + 1}/${all.length}
    <button type="button" class="plain" disabled=${place === all.length - 1} onClick=${go(1)} aria-label="Next branch">›</button>
  </span>`;
}

/** @param {import("./types").Turn} turn */
function facts(turn) {
  const { usage, timings, finish } = turn;
  const found = [];
  if (turn.state === "stopped") found.push("stopped");
  if (finish === "length") found.push("cut at the limit of tokens");
  if (usage?.completion_tokens) found.push(`${usage.completion_tokens.toLocaleString("en")} tokens`);
  if (timings) found.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  const known = usage?.prompt_tokens_details?.cached_tokens;
  if (known > 512) found.push(`${known.toLocaleString("en")} tokens known from before`);
  return found.join(" · ");
}

function Action({ name, call }) {
  return html`<button type="button" class="plain" onClick=${call}>${name}</button>`;
}

function Actions({ conversation, turn, actions, edit }) {
  const [copied, setCopied] = useState(false);
  const take = () => copy(textOf(turn)).then(() => setCopied(true));
  const remove = () => confirm("Delete this message and all that follow it?") && actions.remove(turn);
  const isAnswer = turn.role === "assistant";
  const isText = textOf(turn) !== "" && turn.parts.every((part) => part.type === "text");
  const canGoOn = isAnswer && isText && (turn.finish === "length" || turn.state !== "done");
  return html`<div class="actions">
    <${Branches} conversation=${conversation} turn=${turn} actions=${actions} />
    <${Action} name=${copied ? "Copied" : "Copy"} call=${take} />
    ${isAnswer ? null : html`<${Action} name="Edit" call=${edit} />`}
    ${isAnswer && !turn.drawing && html`<${Action} name="Regenerate" call=${() => actions.again(turn)} />`}
    ${turn.drawing && html`<${Action} name="Again with the next seed" call=${() => actions.again(turn)} />`}
    ${canGoOn && html`<${Action} name="Continue" call=${() => actions.goOn(turn)} />`}
    <${Action} name="Delete" call=${remove} />
    <span class="soft">${facts(turn)}</span>
  </div>`;
}

/** Parts of an answer, in order. */
function Answer({ turn }) {
  const label = (number) =>
    turn.drawing ? `Drawn with seed ${turn.parts[number].seed}` : `Part ${number + 1} of the answer`;
  const isGrid = Boolean(turn.drawing) && turn.parts.length > 1;
  return html`<div class=${isGrid ? "parts grid" : "parts"}>
    ${turn.parts.map((part, number) =>
      part.type === "text"
        ? html`<${Text} key=${number} source=${part.text} />`
        : html`<${Media} key=${number} part=${part} label=${label(number)} />`,
    )}
  </div>`;
}

/** Words and files of the user. */
function Asked({ turn }) {
  const files = turn.parts.filter((part) => part.type !== "text");
  return html`<div class="parts">
    ${files.length ? html`<ul class="attachments">${files.map((part) => html`<${Attachment} part=${part} />`)}</ul>` : null}
    <p class="asked">${textOf(turn)}</p>
  </div>`;
}

function Editor({ turn, actions, close }) {
  const [text, setText] = useState(textOf(turn));
  const send = (event) => {
    event.preventDefault();
    close();
    actions.edit(turn, text);
  };
  return html`<form class="editor" onSubmit=${send}>
    <textarea aria-label="Your message" rows="4" ref=${focused} value=${text} onInput=${(event) => setText(event.target.value)}></textarea>
    <div class="row"><button type="submit">Send as a branch</button><button type="button" class="plain" onClick=${close}>Cancel</button></div>
  </form>`;
}

/** A turn; it paints itself when it changes. */
export function Message({ conversation, turn, actions }) {
  const [, paint] = useState(0);
  const [editing, setEditing] = useState(false);
  const repaint = paced(() => paint((count) => count + 1));
  useEvent(changes, turn.id, repaint, [turn]);
  const runs = turn.state === "running";
  const who = turn.role === "user" ? "You" : "Model";
  return html`<article class=${`turn ${turn.role}`} aria-label=${who} aria-busy=${runs}>
    ${turn.role === "assistant" ? html`<${Answer} turn=${turn} />` : editing ? null : html`<${Asked} turn=${turn} />`}
    ${editing && html`<${Editor} turn=${turn} actions=${actions} close=${() => setEditing(false)} />`}
    ${turn.error && html`<p class="error" role="alert">${turn.error}</p>`}
    ${runs && turn.progress ? html`<p class="progress soft">${turn.progress}</p>` : null}
    ${runs || editing ? null : html`<${Actions} conversation=${conversation} turn=${turn} actions=${actions} edit=${() => setEditing(true)} />`}
  </article>`;
}
