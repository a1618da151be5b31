/**
 * Images, clips and documents: reading files of the user, and showing what was made.
 * @typedef {import("./types").Part} Part
 */
import { json } from "./api.js";
import { html, useEffect, useState } from "./vendor/preact.js";

const LONGEST = 32 << 20;
const NAMES = { "image/png": "png", "image/webp": "webp", "video/mp4": "mp4" };

/** Returns the content of a base64 `data:` address. @param {string} url */
export function blobOf(url) {
  const [head, content] = url.split(",", 2);
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

/** @param {File} file @returns {Promise<string>} */
function addressOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(/** @type {string} */ (reader.result));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

/**
 * Reads a file as a part of a message.
 * @param {File} file @param {{sees: boolean, name: string}} server
 * @returns {Promise<Part>}
 */
export async function partOf(file, server) {
  if (file.size > LONGEST) throw new Error(`${file.name} is larger than 32 MB.`);
  // Until the server has looked at it, what may be animated counts as a video.
  const kind = /gif|webp|apng/.test(file.type) ? "video" : file.type.split("/")[0];
  if (kind === "image" || kind === "video") {
    if (!server.sees) throw new Error(`${server.name} reads text only, and not ${file.name}.`);
    return { type: kind, name: file.name, url: await addressOf(file) };
  }
  const text = await file.text();
  if (/[\0\ufffd]/.test(text)) throw new Error(`${file.name} is no image, no video and no text in UTF-8.`);
  return { type: "file", name: file.name, text };
}

/** Asks the server how many tokens a part has, and for the frames that the model sees. @param {Part} part */
export async function preview(part) {
  if (part.type === "file")
    return { tokens: (await json("/tokenize", { content: part.text, count_only: true })).count };
  const url = { url: part.url };
  const frames = part.numFrames ? { num_frames: part.numFrames } : {};
  const sent =
    part.type === "image" ? { type: "image_url", image_url: url } : { type: "video_url", video_url: url, ...frames };
  return json("/v1/media/preview", { part: sent });
}

/** A video of a `data:` address. */
function Clip({ url, label, plays }) {
  const [address, setAddress] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(blobOf(url));
    setAddress(made);
    return () => URL.revokeObjectURL(made);
  }, [url]);
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  return html`<video src=${address || undefined} aria-label=${label} controls muted loop playsinline autoplay=${plays && !isCalm} />`;
}

/** An image or a clip, with its seed and a link that saves it. */
export function Media({ part, label, plays = true }) {
  const isOwn = part.url?.startsWith("data:");
  const media = isOwn ? part.url.slice(5).split(";")[0] : "";
  const name = `${part.type}-${part.seed ?? "answer"}.${NAMES[media] ?? "bin"}`;
  return html`<figure class=${part.partial ? "media partial" : "media"} aria-busy=${Boolean(part.partial)}>
    ${!isOwn ? html`<div class="empty" role="img" aria-label="Not drawn yet"></div>` : null}
    ${isOwn && part.type === "video" ? html`<${Clip} ...${{ url: part.url, label, plays }} />` : null}
    ${isOwn && part.type === "image" ? html`<img src=${part.url} alt=${label} loading="lazy" />` : null}
    <figcaption>
      ${part.seed === undefined ? null : html`<span>seed ${part.seed}</span>`}
      ${part.partial || !isOwn ? null : html`<a href=${part.url} download=${part.name ?? name}>Save</a>`}
    </figcaption>
  </figure>`;
}

/** The frames that the model sees, decoded from their codes. */
function Frames({ preview }) {
  if (!preview?.frames?.length) return null;
  const { num_frames: count, shown, frames } = preview;
  return html`<div class="strip" tabindex="0" role="group" aria-label="Frames as the model sees them">
    ${frames.map((each, place) => html`<img src=${each.url} alt=${`Frame ${shown[place] + 1} of ${count}`} />`)}
  </div>`;
}

/** What is known of an attached file, and a button that removes it. */
export function Attachment({ part, remove }) {
  const { preview: found } = part;
  const tokens = found ? `${found.tokens.toLocaleString("en")} tokens` : (part.error ?? "counting tokens …");
  const frames = found?.num_frames > 1 ? `, ${found.num_frames} frames` : "";
  return html`<li class=${part.error ? "attachment wrong" : "attachment"}>
    <div class="row">
      ${part.type === "image" ? html`<img class="thumb" src=${part.url} alt="" />` : null}
      <span class="name">${part.name}</span>
      <span class="soft">${tokens}${frames}</span>
      ${remove && html`<button type="button" class="plain" onClick=${remove} aria-label=${`Remove ${part.name}`}>✕</button>`}
    </div>
    <${Frames} preview=${found} />
  </li>`;
}
