/** The page: the list of chats, and a chat, the gallery or the needle page beside it. */
import { changes, chat, draw, liveConversation, resume, stop, stopAll } from "./answers.js";
import { describe, newSeed } from "./api.js";
import { Composer } from "./composer.js";
import { focused, useEvent } from "./events.js";
import { Gallery } from "./gallery.js";
import { Message } from "./message.js";
import { Needles } from "./needle.js";
import { KeyDialog, Settings } from "./settings.js";
import * as store from "./store.js";
import { add, branch, children, newConversation, ordered, remove, show, textOf } from "./tree.js";
import { html, render, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";

/** Pixels up to which the list of chats covers the rest. */
const NARROW = 720;
/** Milliseconds without a key after which a search begins. */
const SEARCH_AFTER = 200;

/** Returns the page and the conversation of the address. */
function place() {
  const [page, id] = location.hash.slice(1).split("/");
  return { page: ["gallery", "needle"].includes(page) ? page : "chat", id: id ?? "" };
}

/** Follows the address. */
function usePlace() {
  const [found, setFound] = useState(place());
  useEvent(window, "hashchange", () => setFound(place()));
  return found;
}

/** Returns what a conversation can be told to do. */
function actionsOf(conversation, settings, paint) {
  const answer = (parent, drawing) => {
    const turn = add(conversation, { role: "assistant", parent, parts: [], ...(drawing ? { drawing } : {}) });
    if (drawing) draw(conversation, turn);
    else chat(conversation, turn, settings);
  };
  const keep = () => (store.save(conversation).catch(() => {}), paint());
  return {
    stop,
    send(parts, mode) {
      const asked = add(conversation, { role: "user", parent: conversation.leaf, parts });
      location.replace(`#chat/${conversation.id}`);
      conversation.title ||= (textOf({ parts }) || parts[0].name).trim().slice(0, 60);
      const seed = settings.draw.seed ?? newSeed();
      answer(asked.id, mode === "chat" ? undefined : { ...settings.draw, kind: mode, seed, n: settings.draw.n ?? 1 });
    },
    again(turn) {
      const drawing = turn.drawing && { ...turn.drawing, seed: (turn.drawing.seed + turn.drawing.n) % 2 ** 32 };
      answer(turn.parent, drawing);
    },
    edit(turn, text) {
      const files = turn.parts.filter((part) => part.type !== "text");
      const drawing = children(conversation, turn.id).find((each) => each.drawing)?.drawing;
      const asked = add(conversation, { ...turn, parts: ordered(files, text) });
      answer(asked.id, drawing);
    },
    goOn: (turn) => chat(conversation, turn, settings),
    show: (id) => (show(conversation, id), keep()),
    remove(turn) {
      const before = Object.values(conversation.turns);
      remove(conversation, turn.id);
      stopAll(before.filter((each) => !(each.id in conversation.turns)));
      keep();
    },
  };
}

function Chat({ conversation, server, settings, refresh }) {
  const [, setCount] = useState(0);
  const log = useRef(/** @type {any} */ (null));
  const follows = useRef(true);
  const top = useRef(0);
  const paint = useCallback(() => (setCount((count) => count + 1), refresh()), [conversation, refresh]);
  useEvent(changes, "state", paint, [paint]);
  const turns = branch(conversation);
  const running = turns.find((turn) => turn.state === "running");
  const actions = actionsOf(conversation, settings, paint);
  const down = () => follows.current && (log.current.scrollTop = log.current.scrollHeight);
  useEffect(() => void (follows.current = true), [conversation, turns.length]);
  useLayoutEffect(down);
  useEffect(() => {
    const watch = new ResizeObserver(down);
    watch.observe(log.current.firstElementChild);
    return () => watch.disconnect();
  }, [conversation]);
  const escape = ({ key, isComposing, target }) =>
    key === "Escape" && !isComposing && running && !target.closest?.("nav, .editor, dialog") && stop(running);
  useEvent(window, "keydown", escape, [running]);
  const scrolled = ({ target }) => {
    // What grows moves the end away, too; only a way upwards is the user's.
    if (target.scrollHeight - target.scrollTop - target.clientHeight < 40) follows.current = true;
    else if (target.scrollTop < top.current) follows.current = false;
    top.current = target.scrollTop;
  };
  const skill = server.draws ? "reads and writes text, images and clips" : server.sees ? "reads images" : "writes text";
  return html`<div class="log" ref=${log} onScroll=${scrolled} role="log" aria-label="Conversation" tabindex="0"><div>
      ${turns.map((turn) => html`<${Message} key=${turn.id} ...${{ conversation, turn, actions }} />`)}
      ${turns.length ? null : html`<p class="welcome soft">${server.name} ${skill}. It runs on this server; chats stay in this browser.</p>`}
    </div></div>
    <${Composer} key=${conversation.id} ...${{ conversation, server, settings, running, actions }} />`;
}

function Sidebar({ here, listed, words, setWords, rename, forget }) {
  const [renamed, setRenamed] = useState("");
  const link = (page, name) =>
    html`<a href=${`#${page}`} aria-current=${here.page === page ? "page" : undefined}>${name}</a>`;
  const item = (one) => {
    const leave = (event) => event.key === "Enter" && event.target.blur();
    const done = (event) => (setRenamed(""), event.target.value && rename(one.id, event.target.value));
    if (renamed === one.id)
      return html`<li><input aria-label="Title" value=${one.title} ref=${focused} onBlur=${done} onKeyDown=${leave} /></li>`;
    const button = (sign, name, call) =>
      html`<button type="button" class="plain" aria-label=${`${name} ${one.title}`} onClick=${call}>${sign}</button>`;
    const current = here.id === one.id ? "page" : undefined;
    return html`<li>
      <a href=${`#chat/${one.id}`} aria-current=${current}>${one.title || "New chat"}</a>
      ${button("✎", "Rename", () => setRenamed(one.id))}
      ${button("✕", "Delete", () => confirm(`Delete “${one.title}”?`) && forget(one.id))}
    </li>`;
  };
  return html`<nav class="sidebar" aria-label="Chats">
    <a class="button" href="#chat">New chat</a>
    <input id="search" type="search" aria-label="Search chats" placeholder="Search"
      value=${words} onInput=${(event) => setWords(event.target.value)} />
    <ul>${listed.map(item)}</ul>
    <div class="pages">${link("gallery", "Gallery")}${link("needle", "Needle in a haystack")}</div>
  </nav>`;
}

function App() {
  const here = usePlace();
  const [server, setServer] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {any} */ (null));
  const [settings, setSettings] = useState(store.settings());
  const [conversation, setConversation] = useState(newConversation());
  const [listed, setListed] = useState(/** @type {any[]} */ ([]));
  const [words, setWords] = useState("");
  const [opened, setOpened] = useState(false);
  const [wide, setWide] = useState(innerWidth > NARROW);

  const connect = () => describe().then((found) => (setServer(found), setProblem(null)), setProblem);
  const refresh = useCallback(() => void store.list(words).then(setListed, () => {}), [words]);
  useEffect(() => void connect(), []);
  useEffect(() => {
    const timer = setTimeout(refresh, words ? SEARCH_AFTER : 0);
    return () => clearTimeout(timer);
  }, [words]);
  const open = async (id) => {
    const stored = id ? await store.load(id).catch(() => undefined) : undefined;
    if (place().id === id) setConversation(liveConversation(id) ?? stored ?? newConversation());
  };
  useEffect(() => void (server && resume(conversation)), [server, conversation]);
  useEffect(() => void (server && store.each((one) => one.id !== place().id && resume(one)).catch(() => {})), [server]);
  useEffect(() => {
    document.documentElement.dataset.theme = settings.theme;
    store.saveSettings(settings);
  }, [settings]);
  useEffect(() => {
    if (innerWidth <= NARROW) setWide(false);
    if (here.page !== "chat" || here.id === conversation.id) return;
    open(here.id);
  }, [here]);
  const changed = ({ data }) => (refresh(), data === conversation.id && !liveConversation(data) && open(data));
  useEvent(store.shared, "message", changed, [conversation, refresh]);
  const key = (event) => {
    const name = `${event.ctrlKey || event.metaKey ? "ctrl" : ""}${event.shiftKey ? " shift" : ""} ${event.key?.toLowerCase()}`;
    const calls = {
      "ctrl k": () => (setWide(true), setTimeout(() => document.getElementById("search")?.focus())),
      "ctrl b": () => setWide((is) => !is),
      "ctrl shift o": () => (location.hash = "chat"),
    };
    if (calls[name]) (event.preventDefault(), calls[name]());
  };
  useEvent(window, "keydown", key);

  const rename = async (id, title) => {
    const one = id === conversation.id ? conversation : (liveConversation(id) ?? (await store.load(id)));
    if (one) await store.save(Object.assign(one, { title }));
    refresh();
  };
  const forget = async (id) => {
    const live = liveConversation(id);
    if (live) stopAll(Object.values(Object.assign(live, { gone: true }).turns));
    await store.forget(id);
    if (id === conversation.id) location.hash = "chat";
    refresh();
  };
  if (problem?.status === 401) return html`<${KeyDialog} done=${connect} problem=${problem} />`;
  if (!server)
    return html`<main class="welcome"><p role="status">${problem ? problem.message : "Connecting …"}</p>
    ${problem && html`<button type="button" onClick=${connect}>Try again</button>`}</main>`;
  return html`
    ${wide && html`<${Sidebar} ...${{ here, listed, words, setWords, rename, forget }} />`}
    <div class="page">
      <header class="row">
        <button type="button" class="plain" aria-label="List of chats" aria-expanded=${wide} onClick=${() => setWide(!wide)}>☰</button>
        <h1>${server.name}</h1>
        <button type="button" class="plain" onClick=${() => setOpened(true)}>Settings</button>
      </header>
      <main>
        ${here.page === "gallery" && html`<${Gallery} />`}
        ${here.page === "needle" && html`<${Needles} />`}
        ${here.page === "chat" && html`<${Chat} ...${{ conversation, server, settings, refresh }} />`}
      </main>
    </div>
    ${opened && html`<${Settings} ...${{ settings, server, refresh }} change=${setSettings} close=${() => setOpened(false)} />`}`;
}

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
