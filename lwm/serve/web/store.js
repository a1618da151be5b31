/**
 * Conversations and settings, kept in the browser only.
 * @typedef {import("./types").Conversation} Conversation
 * @typedef {import("./types").Settings} Settings
 */
import { textOf } from "./tree.js";
import { openDB } from "./vendor/idb.js";

const FORMAT = "lwm-conversations";
const STORE = "conversations";
const SETTINGS = "lwm-settings";

/** Tells other tabs the ids of conversations that have changed. */
export const shared = new BroadcastChannel("lwm");

/** @type {ReturnType<typeof openDB> | null} */
let opened = null;
const closed = () => void (opened = null);

/** @param {Awaited<ReturnType<typeof openDB>>} found */
const upgrade = (found) =>
  found.createObjectStore(STORE, { keyPath: "id" }).createIndex("listed", ["updated", "title"]);

async function database() {
  opened ??= openDB("lwm", 1, { upgrade, terminated: closed });
  opened.catch(closed);
  return opened;
}

/** @param {Conversation} conversation */
export async function save(conversation) {
  await (await database()).put(STORE, conversation);
  shared.postMessage(conversation.id);
}

/** @param {string} id */
export async function forget(id) {
  await (await database()).delete(STORE, id);
  shared.postMessage(id);
}

/** @param {string} id @returns {Promise<Conversation | undefined>} */
export const load = async (id) => (await database()).get(STORE, id);

/**
 * Calls a function with each conversation; not all of them need fit into memory.
 * @param {(conversation: Conversation) => void} visit
 */
export async function each(visit) {
  for await (const { value } of (await database()).transaction(STORE).store) visit(value);
}

/**
 * Lists conversations whose title or text has some words, the latest first.
 * @param {string} words
 */
export async function list(words) {
  /** @type {{id: string, title: string, updated: number}[]} */
  const found = [];
  const wanted = words.toLowerCase();
  if (!wanted) {
    // Without what they contain, which may be much.
    let cursor = await (await database()).transaction(STORE).store.index("listed").openKeyCursor(null, "prev");
    for (; cursor; cursor = await cursor.continue())
      found.push({ id: cursor.primaryKey, updated: cursor.key[0], title: cursor.key[1] });
    return found;
  }
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
  return new Blob([`{"format":"${FORMAT}","version":1,"conversations":[`, ...found, "]}"]);
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
