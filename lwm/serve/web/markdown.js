/**
 * Markdown that grows: only its last block is parsed again.
 *
 * Nothing of a model's answer runs or is fetched: HTML is shown as text, what is made of Markdown is
 * sanitised, and images have to be in the text itself, since an address could carry the chat away.
 */
import { copy } from "./events.js";
import { marked } from "./vendor/marked.js";
import "./vendor/purify.js";

const purify = /** @type {any} */ (globalThis).DOMPurify;
const IMAGE = /^data:image\/(png|jpeg|gif|webp);base64,/;
const LINK = /^(https?|mailto):/i;

/** Milliseconds of a painting after which the next one need not wait. */
const CHEAP = 8;

/** @param {string} text */
const escaped = (text) => text.replace(/[&<>"]/g, (each) => `&#${each.charCodeAt(0)};`);

const boxes = ({ checked }) => (checked ? "☑ " : "☐ ");
marked.use({ gfm: true, renderer: { html: ({ text }) => escaped(text), checkbox: boxes } });

purify.addHook("afterSanitizeAttributes", (/** @type {Element} */ element) => {
  if (element.tagName === "IMG" && !IMAGE.test(element.getAttribute("src") ?? "")) {
    element.replaceWith(`[image ${element.getAttribute("alt") ?? ""}]`);
  }
  if (element.tagName !== "A") return;
  if (!LINK.test(element.getAttribute("href") ?? "")) element.removeAttribute("href");
  element.setAttribute("rel", "noopener noreferrer nofollow");
  element.setAttribute("target", "_blank");
});

/** Returns the result of a call, or another one where a text is nested too deeply. */
function tried(call, otherwise) {
  try {
    return call();
  } catch {
    return otherwise;
  }
}

/** Returns sanitised elements. @param {string} source @returns {DocumentFragment} */
export function rendered(source) {
  const html = tried(() => marked.parse(source, { async: false }), escaped(source));
  const fragment = purify.sanitize(html, {
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "audio", "video", "dialog"],
    FORBID_ATTR: ["style", "class", "id", "name"],
    RETURN_DOM_FRAGMENT: true,
  });
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "wide";
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre")) code.replaceWith(codeBlock(code));
  return fragment;
}

/** Puts a button for copying beside code. @param {HTMLPreElement} code */
function codeBlock(code) {
  const frame = document.createElement("div");
  frame.className = "code";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.onclick = async () => {
    await copy(code.textContent ?? "");
    button.textContent = "Copied";
  };
  code.tabIndex = 0;
  frame.append(button, code.cloneNode(true));
  return frame;
}

/** An element that shows a text. */
export class Markdown {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.source = this.wanted = "";
    this.settled = this.waits = 0;
    this.last = this.block();
  }

  block() {
    const made = document.createElement("div");
    made.className = "block";
    this.root.append(made);
    return made;
  }

  /** Shows a text, of which the start is usually there already. @param {string} source */
  update(source) {
    this.wanted = source.replace(/\r\n?/g, "\n");
    if (this.waits) return;
    const begun = performance.now();
    this.paint(this.wanted);
    const cost = performance.now() - begun;
    if (cost < CHEAP) return;
    // A block that is long leaves most of the time to other things.
    this.waits = setTimeout(() => {
      this.waits = 0;
      this.update(this.wanted);
    }, 3 * cost);
  }

  /** @param {string} source */
  paint(source) {
    if (source === this.source) return;
    if (!source.startsWith(this.source)) {
      this.root.replaceChildren();
      this.settled = 0;
      this.last = this.block();
    }
    this.source = source;
    const tokens = tried(() => marked.lexer(source.slice(this.settled)), []);
    // A block may change until the next one has begun.
    const last = tokens.findLastIndex((each) => each.type !== "space");
    for (const token of tokens.slice(0, last)) {
      // What a block defines for others is shown, since these do not see it.
      this.last.replaceChildren(token.type === "def" ? token.raw : rendered(token.raw));
      this.last = this.block();
      this.settled += token.raw.length;
    }
    const rest = source.slice(this.settled);
    const open = /^ {0,3}```[^`\n]*\n([^]*)$/.exec(rest);
    if (open && !/\n {0,3}``` *\s*$/.test(rest)) this.code(open[1]);
    else this.last.replaceChildren(rendered(rest));
  }

  /** Shows code that is not complete; nothing of it needs to be parsed. @param {string} text */
  code(text) {
    let code = this.last.querySelector("pre[data-open]")?.firstChild;
    if (!(code instanceof Text)) {
      const frame = document.createElement("pre");
      frame.dataset.open = "";
      code = document.createTextNode("");
      frame.append(code);
      this.last.replaceChildren(frame);
    }
    const shown = /** @type {Text} */ (code);
    if (text.startsWith(shown.data)) shown.appendData(text.slice(shown.data.length));
    else shown.data = text;
  }
}
