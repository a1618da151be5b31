/**
 * A conversation as a tree of turns; turns of the same parent are branches, one of which is shown.
 * @typedef {import("./types").Conversation} Conversation
 * @typedef {import("./types").Turn} Turn
 * @typedef {import("./types").Part} Part
 */
import { newId } from "./api.js";

/** @returns {Conversation} */
export function newConversation() {
  return { id: newId(), title: "", updated: Date.now(), turns: {}, leaf: null };
}

/**
 * Returns the turns that lead to one, the first one first; by default to the one shown last.
 * @param {Conversation} conversation @param {string | null} [end]
 */
export function branch(conversation, end = conversation.leaf) {
  const found = [];
  for (let id = end; id; id = conversation.turns[id].parent) found.unshift(conversation.turns[id]);
  return found;
}

/** @param {Conversation} conversation @param {string | null} parent */
export function children(conversation, parent) {
  return Object.values(conversation.turns)
    .filter((turn) => turn.parent === parent)
    .sort((one, other) => one.created - other.created);
}

/**
 * Adds a turn, and shows it.
 * @param {Conversation} conversation
 * @param {Omit<Turn, "id" | "created">} turn
 * @returns {Turn}
 */
export function add(conversation, turn) {
  const last = Math.max(0, ...Object.values(conversation.turns).map((each) => each.created));
  const made = { ...turn, id: newId(), created: Math.max(Date.now(), last + 1) };
  conversation.turns[made.id] = made;
  conversation.leaf = made.id;
  return made;
}

/** Shows the newest branch that goes through a turn. @param {Conversation} conversation @param {string} id */
export function show(conversation, id) {
  for (let next = [conversation.turns[id]]; next.length;) {
    conversation.leaf = next[next.length - 1].id;
    next = children(conversation, conversation.leaf);
  }
}

/** Removes a turn and all that follows it. @param {Conversation} conversation @param {string} id */
export function remove(conversation, id) {
  const { parent } = conversation.turns[id];
  for (const child of children(conversation, id)) remove(conversation, child.id);
  delete conversation.turns[id];
  const others = children(conversation, parent);
  conversation.leaf = parent;
  if (others.length) show(conversation, others[others.length - 1].id);
}

/**
 * Returns the parts of a message: documents, words, images and clips, in the order of LWM's chats.
 * @param {Part[]} files @param {string} text @returns {Part[]}
 */
export function ordered(files, text) {
  const words = /** @type {Part[]} */ (text ? [{ type: "text", text }] : []);
  return [...files.filter((part) => part.type === "file"), ...words, ...files.filter((part) => part.type !== "file")];
}

/** @param {Pick<Turn, "parts">} turn */
export function textOf(turn) {
  return turn.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
}

/** Returns a file's text as a `data:` address. @param {string} text */
function textAddress(text) {
  let binary = "";
  for (const byte of new TextEncoder().encode(text)) binary += String.fromCharCode(byte);
  return `data:text/plain;base64,${btoa(binary)}`;
}

/** @param {Part} part */
function sent(part) {
  if (part.type === "text") return { type: "text", text: part.text };
  if (part.type === "image") return { type: "image_url", image_url: { url: part.url } };
  if (part.type === "file")
    return { type: "file", file: { file_data: textAddress(part.text ?? ""), filename: part.name } };
  const frames = part.numFrames ? { num_frames: part.numFrames } : {};
  return { type: "video_url", video_url: { url: part.url }, ...frames };
}

/**
 * Returns turns as messages of a request. Turns that drew clips are left out with their questions,
 * since a clip may fill the context; so are answers without content.
 * @param {Turn[]} turns @param {string} system
 */
export function messages(turns, system) {
  const made = system ? [{ role: "system", content: /** @type {any} */ (system) }] : [];
  turns.forEach((turn, place) => {
    const answer = turn.role === "user" ? turns[place + 1] : turn;
    if (answer?.role === "assistant" && (!answer.parts.length || answer.drawing?.kind === "clip")) return;
    if (turn.role === "user") {
      const isPlain = turn.parts.length === 1 && turn.parts[0].type === "text";
      made.push({ role: "user", content: isPlain ? turn.parts[0].text : turn.parts.map(sent) });
      return;
    }
    const whole = turn.parts.filter((part) => !part.partial);
    const images = whole.filter((part) => part.type === "image").map(sent);
    const videos = whole.filter((part) => part.type === "video").map(sent);
    made.push({
      role: "assistant",
      content: textOf(turn),
      ...(images.length ? { images } : {}),
      ...(videos.length ? { videos } : {}),
    });
  });
  return made;
}
