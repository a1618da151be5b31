/** Where a message is written, with its files and what they cost. */
import { changes } from "./answers.js";
import { json, newId } from "./api.js";
import { focused, paced, useEvent } from "./events.js";
import { Attachment, partOf, preview } from "./media.js";
import { branch, ordered } from "./tree.js";
import { html, useEffect, useState } from "./vendor/preact.js";

/** Characters of a pasted text that becomes a file. */
const LONG = 4000;
const COUNT_AFTER = 400;
const MODES = { chat: "Chat", image: "Draw images", clip: "Draw clips" };

/** Drafts of conversations, by their ids; of one that has not begun under an empty one. */
const drafts = new Map();

/** Counts the tokens of a text, a while after its last change. */
function useTokens(text) {
  const [count, setCount] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    const ask = () => json("/tokenize", { content: text, count_only: true }, abort.signal);
    const timer = setTimeout(
      () =>
        ask().then(
          (found) => setCount(found.count),
          () => setCount(0),
        ),
      COUNT_AFTER,
    );
    return () => (clearTimeout(timer), abort.abort());
  }, [text]);
  return count;
}

/** Returns the tokens of a conversation after its last answer. */
function usedBy(conversation) {
  return branch(conversation).findLast((turn) => turn.usage?.total_tokens)?.usage.total_tokens ?? 0;
}

/** How much of the context is used. */
function Meter({ conversation, draft, context, running }) {
  const [, paint] = useState(0);
  useEvent(
    changes,
    running?.id ?? "",
    paced(() => paint((times) => times + 1)),
    [running],
  );
  const count = usedBy(conversation) + draft;
  const [used, most] = [count, context].map((each) => each.toLocaleString("en"));
  return html`<label class="meter soft">
    <progress max=${context} value=${Math.min(count, context)}></progress>
    <span class=${count > context ? "error" : ""}>${used} of ${most} tokens</span>
  </label>`;
}

export function Composer({ conversation, server, settings, running, actions }) {
  const draft = drafts.get(conversation.leaf ? conversation.id : "") ?? { text: "", files: [], mode: "chat" };
  const [text, setText] = useState(draft.text);
  const [files, setFiles] = useState(draft.files);
  const [mode, setMode] = useState(draft.mode);
  const [error, setError] = useState("");
  const parts = ordered(files, text);
  const count = useTokens(text) + files.reduce((sum, part) => sum + (part.preview?.tokens ?? 0), 0);
  useEffect(
    () => void drafts.set(conversation.leaf ? conversation.id : "", { text, files, mode }),
    [text, files, mode],
  );

  const change = (part, more) =>
    setFiles((all) => all.map((each) => (each.key === part.key ? { ...each, ...more } : each)));
  const attach = async (given) => {
    setError("");
    for (const file of given) {
      try {
        const part = await partOf(file, server);
        if (part.type === "video") part.numFrames = settings.num_frames;
        part.key = newId();
        setFiles((all) => [...all, part]);
        const found = await preview(part).catch(({ message }) => ({ error: message }));
        change(part, "error" in found ? found : { type: found.kind ?? part.type, preview: found });
      } catch (failure) {
        setError(/** @type {Error} */ (failure).message);
      }
    }
  };
  const paste = (event) => {
    const { files: given } = event.clipboardData;
    const pasted = event.clipboardData.getData("text/plain");
    if (!given.length && pasted.length <= LONG) return;
    event.preventDefault();
    attach(given.length ? [...given] : [new File([pasted], "pasted text", { type: "text/plain" })]);
  };
  const drop = (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  };
  useEvent(window, "dragover", (event) => event.preventDefault());
  useEvent(window, "drop", drop, [settings]);
  const send = (event) => {
    event.preventDefault();
    if (running) return actions.stop(running);
    if (!parts.length) return;
    if (files.some((part) => part.error)) return setError("Remove the files that cannot be read first.");
    if (files.some((part) => !part.preview)) return setError("Wait until the files have been read.");
    if (mode !== "chat" && files.some((part) => part.type !== "image"))
      return setError("Only images can be sent along with what is to be drawn.");
    actions.send(parts, mode);
    setError("");
    setText("");
    setFiles([]);
  };
  const key = (event) => {
    // 229 is a key that an input method has taken.
    if (event.key === "Enter" && !event.shiftKey && event.keyCode !== 229 && !running) send(event);
  };
  const file = (part) => {
    const remove = () => setFiles(files.filter((each) => each !== part));
    return html`<${Attachment} key=${part.key} part=${part} remove=${remove} />`;
  };
  const choose = ({ target }) => setMode(target.value);
  const pick = ({ target }) => (attach([...target.files]), (target.value = ""));
  const modes = Object.entries(MODES).map(([value, name]) => html`<option value=${value}>${name}</option>`);
  return html`<form class="composer" onSubmit=${send}>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${files.length > 0 && html`<ul class="attachments">${files.map(file)}</ul>`}
    <textarea id="message" aria-label="Message" rows="3" ref=${focused}
      placeholder=${mode === "chat" ? "Ask something; files can be dropped or pasted here" : "Say what is to be drawn"}
      value=${text} onInput=${(event) => setText(event.target.value)} onPaste=${paste} onKeyDown=${key}></textarea>
    <div class="row">
      <label class="button">Add files<input type="file" multiple class="hidden" onChange=${pick} /></label>
      ${server.draws && html`<select aria-label="Kind of answer" value=${mode} onChange=${choose}>${modes}</select>`}
      <${Meter} ...${{ conversation, running, context: server.context, draft: count }} />
      <button type="submit" class="main">${running ? "Stop" : "Send"}</button>
    </div>
  </form>`;
}
