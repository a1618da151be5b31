/**
 * Answers that are being written: requests, their events, and attaching to them after a reload.
 * @typedef {import("./types").Conversation} Conversation
 * @typedef {import("./types").Turn} Turn
 * @typedef {import("./types").Settings} Settings
 */
import { events, newId, request, ServerError } from "./api.js";
import { blobOf } from "./media.js";
import { save } from "./store.js";
import { branch, messages, textOf } from "./tree.js";

/** Sends the event of a turn's id when it has changed, and `state` when an answer begins or ends. */
export const changes = new EventTarget();

/** Milliseconds after which an answer that grows is saved again. */
const KEPT_EVERY = 5000;

/** @param {number} wait */
const pause = (wait) => new Promise((resolve) => setTimeout(resolve, wait));

/** @type {Map<string, {abort: AbortController, conversation: Conversation}>} */
const running = new Map();

/** Returns a conversation in which an answer is being written. @param {string} id */
export function liveConversation(id) {
  return [...running.values()].find((each) => each.conversation.id === id)?.conversation;
}

/** @param {Turn} turn @param {string[]} more */
function changed(turn, ...more) {
  for (const name of [turn.id, ...more]) changes.dispatchEvent(new Event(name));
}

/** Returns fields that have been set. @param {Record<string, any>} fields */
function given(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value != null));
}

/** H.264 where the browser plays it, and animated WebP elsewhere. */
function clipFormat() {
  const video = document.createElement("video");
  return video.canPlayType('video/mp4; codecs="avc1.64001f"') ? "mp4" : "webp";
}

/** @param {Settings} settings */
function sampling(settings) {
  const { temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed } = settings;
  return given({ temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed });
}

/**
 * Asks for the text, images and clips of a turn; its stream is noted first, so that another page
 * can attach to it.
 * @param {Conversation} conversation @param {Turn} turn @param {Settings} settings
 */
export async function chat(conversation, turn, settings) {
  const turns = branch(conversation, turn.parent);
  turn.before = textOf(turn);
  const told = messages(turn.before ? [...turns, turn] : turns, settings.system);
  await run(conversation, turn, "/v1/chat/completions", {
    messages: told,
    ...sampling(settings),
    ...(turn.before ? { continue_final_message: true } : {}),
    clip_format: clipFormat(),
    return_progress: true,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  });
}

/**
 * Draws the images or clips of a turn, after the images of its question.
 * @param {Conversation} conversation @param {Turn} turn
 */
export async function draw(conversation, turn) {
  const [asked] = branch(conversation, turn.parent).slice(-1);
  const { kind, seed, n, guidance, frames, ...options } = /** @type {any} */ (turn.drawing);
  const sent = given({
    prompt: textOf(asked),
    n,
    seed,
    guidance_scale: guidance,
    image_options: given(options),
    video_options: given(options),
    frame_count: kind === "clip" ? (frames ?? 8) : null,
    output_format: kind === "clip" ? clipFormat() : "png",
    partial_images: 3,
    stream: true,
  });
  const images = asked.parts.filter((part) => part.type === "image");
  if (!images.length) return run(conversation, turn, "/v1/images/generations", sent);
  const form = new FormData();
  for (const [name, value] of Object.entries(sent))
    form.append(name, typeof value === "object" ? JSON.stringify(value) : `${value}`);
  for (const image of images) form.append("image", blobOf(image.url ?? ""));
  return run(conversation, turn, "/v1/images/edits", form);
}

/** Attaches to answers that ran when the page was left. @param {Conversation} conversation */
export function resume(conversation) {
  for (const turn of Object.values(conversation.turns))
    if (turn.state === "running" && !running.has(turn.id)) run(conversation, turn, `/v1/streams/${turn.stream}`);
}

/** Saves a conversation that has not been deleted. @param {Conversation} conversation @param {Turn} turn */
async function keep(conversation, turn) {
  if (conversation.gone) return;
  conversation.updated = Date.now();
  await save(conversation).catch(({ message }) => (turn.error = `This chat is not kept in the browser: ${message}`));
}

/**
 * Runs a request, and keeps what comes.
 * @param {Conversation} conversation @param {Turn} turn @param {string} path @param {any} [body]
 */
async function run(conversation, turn, path, body) {
  const abort = new AbortController();
  running.set(turn.id, { abort, conversation });
  if (body) turn.stream = newId();
  Object.assign(turn, { state: "running", error: undefined, finish: undefined, first: undefined, progress: "waiting" });
  changed(turn, "state");
  await keep(conversation, turn);
  try {
    await receive(conversation, turn, abort.signal, path, body);
    turn.state = isComplete(turn) ? "done" : "stopped";
  } catch (error) {
    const { name, message, status } = /** @type {any} */ (error);
    turn.state = name === "AbortError" ? "stopped" : "error";
    if (turn.state === "error")
      turn.error = !body && status === 404 ? "The answer ended while nobody read it." : message;
  }
  running.delete(turn.id);
  turn.progress = undefined;
  turn.parts = turn.parts.filter((part) => !part.partial);
  await keep(conversation, turn);
  changed(turn, "state");
}

/**
 * Takes the events of an answer; if the connection breaks, those of its stream from the first one on.
 * @param {Conversation} conversation @param {Turn} turn @param {AbortSignal} signal @param {string} path
 * @param {any} body
 */
async function receive(conversation, turn, signal, path, body, tries = 3) {
  /** @type {Record<string, string>} */
  const headers = body ? { "x-stream-id": turn.stream ?? "" } : {};
  const response = await request(path, { body, headers, signal });
  turn.parts = turn.before ? [{ type: "text", text: turn.before }] : [];
  let kept = Date.now();
  try {
    for await (const event of events(response)) {
      (turn.drawing ? takeDrawing : take)(turn, event);
      changed(turn);
      if (Date.now() - kept < KEPT_EVERY) continue;
      kept = Date.now();
      keep(conversation, turn);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError || !tries) throw error;
    await pause(1000);
    await receive(conversation, turn, signal, `/v1/streams/${turn.stream}`, undefined, tries - 1);
  }
}

/** @param {Turn} turn */
function isComplete(turn) {
  if (!turn.drawing) return Boolean(turn.finish);
  return turn.parts.length === turn.drawing.n && turn.parts.every((part) => !part.partial);
}

/** Ends an answer, and frees its slot. @param {Turn} turn */
export async function stop(turn) {
  running.get(turn.id)?.abort.abort();
  for (const wait of [0, 1000, 4000]) {
    await pause(wait);
    const found = await request(`/v1/streams/${turn.stream}`, { method: "DELETE" }).catch((error) => error);
    // The server may not have begun yet.
    if (found.status !== 404) return;
  }
}

/** Ends those of some turns that are being written. @param {Turn[]} turns */
export function stopAll(turns) {
  turns.filter((turn) => running.has(turn.id)).forEach(stop);
}

/** Adds an event of a chat. @param {Turn} turn @param {any} event */
function take(turn, event) {
  if (event.usage) turn.usage = event.usage;
  if (event.timings) turn.timings = event.timings;
  const choice = event.choices?.[0];
  if (choice?.finish_reason) turn.finish = choice.finish_reason;
  if (event.prompt_progress) turn.progress = reading(event.prompt_progress);
  if (event.progress) turn.progress = `drawing, ${event.progress.tokens.toLocaleString("en")} tokens`;
  const { content, images, videos } = choice?.delta ?? {};
  if (content) {
    const last = turn.parts[turn.parts.length - 1];
    if (last?.type === "text") last.text += content;
    else turn.parts.push({ type: "text", text: content });
    turn.first ??= Date.now();
    const count = event.usage?.completion_tokens ?? 0;
    const speed = count / Math.max(1, (Date.now() - turn.first) / 1000);
    turn.progress = `${count.toLocaleString("en")} tokens, ${speed.toFixed(1)} tokens/s`;
  }
  for (const each of images ?? []) turn.parts.push({ type: "image", url: each.image_url.url });
  for (const each of videos ?? []) turn.parts.push({ type: "video", url: each.video_url.url });
}

/** Returns how far the prompt has been read, and the time left. @param {any} progress */
function reading({ total, cache, processed, time_ms }) {
  const left = ((time_ms / 1000) * (total - processed)) / Math.max(1, processed - cache);
  const seconds = processed > cache && left >= 1 ? `, about ${Math.ceil(left)} s left` : "";
  const known = cache ? `, ${cache.toLocaleString("en")} of them known` : "";
  return `read ${processed.toLocaleString("en")} of ${total.toLocaleString("en")} tokens${known}${seconds}`;
}

/** Adds an event of images that are drawn. @param {Turn} turn @param {any} event */
function takeDrawing(turn, event) {
  const { kind, seed, n } = /** @type {import("./types").Drawing} */ (turn.drawing);
  const partial = event.type.endsWith(".partial_image");
  const isVideo = kind === "clip" && !partial && event.output_format === "mp4";
  const media = { mp4: "video/mp4", webp: "image/webp", png: "image/png" }[event.output_format];
  turn.parts[event.index] = {
    type: isVideo ? "video" : "image",
    url: `data:${media};base64,${event.b64_json}`,
    seed: event.seed ?? (seed + event.index) % 2 ** 32,
    partial,
  };
  for (let place = 0; place < n; place++) turn.parts[place] ??= { type: "image", partial: true, seed: seed + place };
  turn.progress = "drawing";
}
