/** Where a message is written, with its files and what they cost. */
import { json, newId } from "./api.js";
import { Attachment, partOf, preview } from "./media.js";
import { branch, messages, ordered } from "./tree.js";
import { html, useEffect, useState } from "./vendor/preact.js";

/** Characters of a pasted text that becomes a file. */
const LONG = 4000;
const COUNT_AFTER = 400;
const MODES = { chat: "Chat", image: "Draw images", clip: "Draw clips" };

/** Counts the tokens of a conversation with a draft, a while after its last change. */
function useCount(conversation, settings, parts) {
  const [count, setCount] = useState(0);
  const key = JSON.stringify([conversation.leaf, settings.system, parts.map((part) => part.text ?? part.url?.length)]);
  useEffect(() => {
    if (!parts.length) return;
    const abort = new AbortController();
    const timer = setTimeout(() => {
      const told = messages([...branch(conversation), { role: "user", parts }], settings.system);
      const asked = { messages: told, count_only: true };
      json("/tokenize", asked, abort.signal)
        .then((found) => setCount(found.count))
        .catch(() => {});
    }, COUNT_AFTER);
    return () => (clearTimeout(timer), abort.abort());
  }, [key]);
  if (parts.length) return count;
  const last = branch(conversation).findLast((turn) => turn.usage?.total_tokens);
  return last?.usage.total_tokens ?? 0;
}

/** How much of the context is used. */
function Meter({ count, context }) {
  const [used, most] = [count, context].map((each) => each.toLocaleString("en"));
  return html`<label class="meter soft">
    <progress max=${context} value=${Math.min(count, context)}></progress>
    <span class=${count > context ? "error" : ""}>${used} of ${most} tokens</span>
  </label>`;
}

export function Composer({ conversation, server, settings, running, actions }) {
  const [text, setText] = useState("");
  const [files, setFiles] = useState(/** @type {any[]} */ ([]));
  const [mode, setMode] = useState("chat");
  const [error, setError] = useState("");
  const parts = ordered(files, text);
  const count = useCount(conversation, settings, parts);

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
    attach(given.length ? given : [new File([pasted], "pasted text", { type: "text/plain" })]);
  };
  const drop = (event) => {
    event.preventDefault();
    attach(event.dataTransfer.files);
  };
  const send = (event) => {
    event.preventDefault();
    if (running) return actions.stop(running);
    if (!parts.length) return;
    if (files.some((part) => part.error)) return setError("Remove the files that cannot be read first.");
    actions.send(parts, mode);
    setText("");
    setFiles([]);
  };
  const key = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !running) send(event);
  };
  const file = (part) => {
    const remove = () => setFiles(files.filter((each) => each !== part));
    return html`<${Attachment} key=${part.key} part=${part} remove=${remove} />`;
  };
  const choose = ({ target }) => setMode(target.value);
  const pick = ({ target }) => (attach([...target.files]), (target.value = ""));
  const modes = Object.entries(MODES).map(([value, name]) => html`<option value=${value}>${name}</option>`);
  return html`<form class="composer" onSubmit=${send} onDragOver=${(event) => event.preventDefault()} onDrop=${drop}>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${files.length > 0 && html`<ul class="attachments">${files.map(file)}</ul>`}
    <textarea id="message" aria-label="Message" rows="3" autofocus
      placeholder=${mode === "chat" ? "Ask something; files can be dropped or pasted here" : "Say what is to be drawn"}
      value=${text} onInput=${(event) => setText(event.target.value)} onPaste=${paste} onKeyDown=${key}></textarea>
    <div class="row">
      <label class="button">Add files<input type="file" multiple class="hidden" onChange=${pick} /></label>
      ${server.draws && html`<select aria-label="Kind of answer" value=${mode} onChange=${choose}>${modes}</select>`}
      <${Meter} count=${count} context=${server.context} />
      <button type="submit" class="main">${running ? "Stop" : "Send"}</button>
    </div>
  </form>`;
}
