/**
 * Conversations and settings, kept in the browser only.
 * @typedef {import("./types").Conversation} Conversation
 * @typedef {import("./types").Settings} Settings
 */
import { textOf } from "./tree.js";

const FORMAT = "lwm-conversations";
const SETTINGS = "lwm-settings";

/** Tells other tabs the ids of conversations that have changed. */
export const shared = new BroadcastChannel("lwm");

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

/** @template T @param {IDBRequest<T>} asked @returns {Promise<T>} */
function result(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

function database() {
  if (!opened) {
    const asked = indexedDB.open("lwm", 1);
    asked.onupgradeneeded = () => {
      const made = asked.result.createObjectStore("conversations", { keyPath: "id" });
      made.createIndex("listed", ["updated", "title"]);
    };
    opened = result(asked);
    const closed = () => (opened = null);
    opened.then((found) => (found.onclose = closed), closed);
  }
  return opened;
}

async function reading() {
  return (await database()).transaction("conversations").objectStore("conversations");
}

/** Writes, and tells other tabs. @param {string} id @param {(store: IDBObjectStore) => void} call */
async function write(id, call) {
  const transaction = (await database()).transaction("conversations", "readwrite");
  call(transaction.objectStore("conversations"));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
  shared.postMessage(id);
}

/** @param {Conversation} conversation */
export const save = (conversation) => write(conversation.id, (store) => store.put(conversation));

/** @param {string} id */
export const forget = (id) => write(id, (store) => store.delete(id));

/** @param {string} id @returns {Promise<Conversation | undefined>} */
export async function load(id) {
  return result((await reading()).get(id));
}

/** @template T @param {IDBRequest<T | null>} asked @param {(cursor: any) => void} visit */
async function walk(asked, visit) {
  await new Promise((resolve, reject) => {
    asked.onerror = () => reject(asked.error);
    asked.onsuccess = () => {
      const cursor = /** @type {any} */ (asked.result);
      if (!cursor) return resolve(null);
      visit(cursor);
      cursor.continue();
    };
  });
}

/**
 * Calls a function with each conversation; not all of them need fit into memory.
 * @param {(conversation: Conversation) => void} visit
 */
export async function each(visit) {
  await walk((await reading()).openCursor(), ({ value }) => visit(value));
}

/**
 * Lists conversations whose title or text has some words, the latest first.
 * @param {string} words
 */
export async function list(words) {
  /** @type {{id: string, title: string, updated: number}[]} */
  const found = [];
  const wanted = words.toLowerCase();
  const add = ({ primaryKey: id, key: [updated, title] }) => found.push({ id, title, updated });
  if (!wanted) await walk((await reading()).index("listed").openKeyCursor(null, "prev"), add);
  else
    await each((one) => {
      const texts = [one.title, ...Object.values(one.turns).map(textOf)].join("\n").toLowerCase();
      if (texts.includes(wanted)) found.push(one);
    });
  return found.sort((one, other) => other.updated - one.updated);
}

/** Returns all conversations as a file. */
export async function exported() {
  /** @type {string[]} */
  const found = [];
  await each((one) => found.push(found.length ? "," : "", JSON.stringify(one)));
  return new Blob([`{"format":"${FORMAT}","version":1,"conversations":[`, ...found, "]}"], {
    type: "application/json",
  });
}

/**
 * Adds the conversations of a file, but for those that are newer here; returns their number.
 * @param {string} content
 */
export async function imported(content) {
  let found;
  try {
    found = JSON.parse(content);
  } catch {
    found = null;
  }
  if (found?.format !== FORMAT || !found.conversations?.every(isSound))
    throw new Error("This is no file of conversations that this page has exported.");
  let count = 0;
  for (const one of found.conversations) {
    const own = await load(one.id);
    if (!own || own.updated < one.updated) count += (await save(one), 1);
  }
  return count;
}

/** Returns whether a conversation is complete, and each parent of a turn is older. @param {any} one */
function isSound(one) {
  const isPart = (part) =>
    (part.type !== "text" || typeof part.text === "string") && /^data:/.test(part.url ?? "data:");
  const isTurn = ([id, turn]) =>
    turn.id === id &&
    turn.parts.every(isPart) &&
    (turn.parent === null || one.turns[turn.parent].created < turn.created);
  try {
    const hasFacts = typeof one.id === "string" && typeof one.title === "string" && one.updated > 0;
    const hasLeaf = one.leaf === null || Object.hasOwn(one.turns, one.leaf);
    return hasFacts && hasLeaf && Object.entries(one.turns).every(isTurn);
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
