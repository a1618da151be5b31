/** Settings of answers; an empty field leaves a value to the server. */
import { KEY } from "./api.js";
import { DEFAULTS, exported, imported } from "./store.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";

/** Names and steps. */
const FIELDS = {
  temperature: ["Temperature", 0.1],
  top_p: ["Top-p", 0.05],
  top_k: ["Top-k", 1],
  min_p: ["Min-p", 0.01],
  repetition_penalty: ["Repetition penalty", 0.05],
  max_tokens: ["Tokens of an answer at most", 1],
  seed: ["Seed", 1],
  num_frames: ["Frames at most", 1],
  n: ["Images or clips at once", 1],
  guidance: ["Guidance", 0.5],
  frames: ["Frames of a clip", 1],
};
const TEXT = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
const DRAW = ["n", "seed", "guidance", "temperature", "top_k", "top_p", "frames"];
const KEYS =
  "Enter sends, Shift+Enter begins a line, Esc stops. Ctrl+Shift+O: new chat, Ctrl+K: search, Ctrl+B: list of chats.";

function Numbers({ title, names, values, defaults = {}, change, max = {} }) {
  const field = (name) => {
    const set = ({ target }) => change({ [name]: target.value === "" ? null : Number(target.value) });
    const [label, step] = FIELDS[name];
    return html`<label>${label}
      <input type="number" min="0" max=${max[name]} step=${step}
        placeholder=${defaults[name] ?? "default"} value=${values[name] ?? ""} onChange=${set} />
    </label>`;
  };
  return html`<fieldset><legend>${title}</legend>${names.map(field)}</fieldset>`;
}

/** A dialog that is open as long as it is there. */
function Dialog({ title, close, children }) {
  const root = useRef(/** @type {any} */ (null));
  useEffect(() => root.current.showModal(), []);
  return html`<dialog ref=${root} onClose=${() => close(root.current)} aria-label=${title}>
    <div class="row"><h2>${title}</h2><button type="button" class="plain" onClick=${() => root.current.close()} aria-label="Close">✕</button></div>
    ${children}
  </dialog>`;
}

/** Asks for the key of a server that has one. */
export function KeyDialog({ done, problem }) {
  const send = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, event.target.elements.key.value);
    done();
  };
  return html`<${Dialog} title="This server needs a key" close=${(dialog) => dialog.showModal()}>
    <form onSubmit=${send}>
      ${sessionStorage.getItem(KEY) && html`<p class="error" role="alert">${problem.message}</p>`}
      <label>Key <input name="key" type="password" pattern="[!-~]+" required autocomplete="off" /></label>
      <button class="main">Use this key</button></form>
  <//>`;
}

export function Settings({ settings, server, change, close, refresh }) {
  const [note, setNote] = useState("");
  const set = (more) => change({ ...settings, ...more });
  const setDraw = (more) => set({ draw: { ...settings.draw, ...more } });
  const defaults = { n: 1, seed: "random", frames: 8, ...server.imageSettings?.image };
  const max = { n: server.maxN, frames: 64 };
  const save = async () => {
    const url = URL.createObjectURL(await exported());
    Object.assign(document.createElement("a"), { href: url, download: "lwm-chats.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  const open = async ({ target }) => {
    const [file] = target.files;
    const count = await imported(await file.text()).catch(({ message }) => message);
    target.value = "";
    setNote(typeof count === "number" ? `${count} chats were added.` : count);
    refresh();
  };
  const themes = ["system", "light", "dark"].map((each) => html`<option value=${each}>${each}</option>`);
  return html`<${Dialog} title="Settings" close=${close}>
    <label>System message<textarea rows="3" value=${settings.system} onChange=${(event) => set({ system: event.target.value })}></textarea></label>
    <${Numbers} title="Text" names=${TEXT} values=${settings} defaults=${server.defaults} change=${set} />
    ${server.sees && html`<${Numbers} title="Videos that are sent" names=${["num_frames"]} values=${settings} change=${set} />`}
    ${server.draws && html`<${Numbers} title="Drawing" names=${DRAW} values=${settings.draw} ...${{ defaults, max }} change=${setDraw} />`}
    <label>Colours <select value=${settings.theme} onChange=${(event) => set({ theme: event.target.value })}>${themes}</select></label>
    <p class="row">
      <button type="button" onClick=${() => change({ ...DEFAULTS, system: settings.system, theme: settings.theme })}>Reset to the model's defaults</button>
      <button type="button" onClick=${save}>Export chats</button>
      <label class="button">Import chats<input type="file" accept=".json" class="hidden" onChange=${open} /></label>
    </p>
    ${note && html`<p role="status">${note}</p>`}
    <p class="soft">${KEYS} Chats are kept in this browser only.</p>
  <//>`;
}
