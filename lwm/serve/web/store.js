/**
 * Conversations and settings, kept in the browser only.
 * @typedef {import("./types").Conversation} Conversation
 * @typedef {import("./types").Settings} Settings
 */
import { textOf } from "./tree.js";

const FORMAT = "lwm-conversations";
const SETTINGS = "lwm-settings";

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

/** @template T @param {IDBRequest<T>} asked @returns {Promise<T>} */
function result(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

/** @param {IDBTransactionMode} mode */
async function conversations(mode) {
  if (!opened) {
    const asked = indexedDB.open("lwm", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("conversations", { keyPath: "id" });
    opened = result(asked);
  }
  return (await opened).transaction("conversations", mode).objectStore("conversations");
}

/** @param {Conversation} conversation */
export async function save(conversation) {
  await result((await conversations("readwrite")).put(conversation));
}

/** @param {string} id @returns {Promise<Conversation | undefined>} */
export async function load(id) {
  return result((await conversations("readonly")).get(id));
}

/** @param {string} id */
export async function forget(id) {
  await result((await conversations("readwrite")).delete(id));
}

/**
 * Calls a function with each conversation; not all of them need fit into memory.
 * @param {(conversation: Conversation) => void} visit
 */
export async function each(visit) {
  const asked = (await conversations("readonly")).openCursor();
  await new Promise((resolve, reject) => {
    asked.onerror = () => reject(asked.error);
    asked.onsuccess = () => {
      const cursor = asked.result;
      if (!cursor) return resolve(null);
      visit(cursor.value);
      cursor.continue();
    };
  });
}

/**
 * Lists conversations whose title or text has some words, the latest first.
 * @param {string} words
 */
export async function list(words) {
  /** @type {{id: string, title: string, updated: number}[]} */
  const found = [];
  const wanted = words.toLowerCase();
  await each((one) => {
    const texts = () => Object.values(one.turns).map(textOf).join("\n").toLowerCase();
    if (!wanted || one.title.toLowerCase().includes(wanted) || texts().includes(wanted))
      found.push({ id: one.id, title: one.title, updated: one.updated });
  });
  return found.sort((one, other) => other.updated - one.updated);
}

/** Returns all conversations as a file. */
export async function exported() {
  /** @type {Conversation[]} */
  const found = [];
  await each((one) => found.push(one));
  const content = JSON.stringify({ format: FORMAT, version: 1, conversations: found });
  return new Blob([content], { type: "application/json" });
}

/**
 * Adds the conversations of a file, and returns their number; those with the same id are replaced.
 * @param {string} content
 */
export async function imported(content) {
  let found;
  try {
    found = JSON.parse(content);
  } catch {
    found = null;
  }
  const fits = (/** @type {any} */ one) => typeof one?.id === "string" && typeof one.title === "string" && isTree(one);
  if (found?.format !== FORMAT || !found.conversations?.every(fits))
    throw new Error("This is no file of conversations that this page has exported.");
  for (const one of found.conversations) await save(one);
  return found.conversations.length;
}

/** Returns whether each turn has a parent that is older, or none. @param {any} one */
function isTree({ turns, leaf }) {
  const isSound = ([id, turn]) =>
    turn.id === id && Array.isArray(turn.parts) && (turn.parent === null || turns[turn.parent].created < turn.created);
  try {
    return Object.entries(turns).every(isSound) && (leaf === null || leaf in turns);
  } catch {
    return false;
  }
}

/** @type {Settings} */
export const DEFAULTS = { system: "", theme: "system", draw: { n: 1 } };

/** @returns {Settings} */
export function settings() {
  try {
    const found = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
    return { ...DEFAULTS, ...found, draw: { ...DEFAULTS.draw, ...found.draw } };
  } catch {
    return structuredClone(DEFAULTS);
  }
}

/** @param {Settings} value */
export function saveSettings(value) {
  localStorage.setItem(SETTINGS, JSON.stringify(value));
}
