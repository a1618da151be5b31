/** All that was drawn in the chats of this browser. */
import { Media } from "./media.js";
import { each } from "./store.js";
import { textOf } from "./tree.js";
import { html, useEffect, useState } from "./vendor/preact.js";

/** Images that are shown at first. */
const MANY = 60;

/** Returns drawn images and clips with their words, the latest first. */
async function drawn() {
  /** @type {{part: any, prompt: string, created: number, chat: string}[]} */
  const found = [];
  await each((conversation) => {
    for (const turn of Object.values(conversation.turns)) {
      if (turn.role !== "assistant" || !turn.parent) continue;
      const prompt = textOf(conversation.turns[turn.parent]);
      for (const part of turn.parts)
        if (part.type !== "text" && !part.partial)
          found.push({ part, prompt, created: turn.created, chat: conversation.id });
    }
  });
  return found.sort((one, other) => other.created - one.created);
}

export function Gallery() {
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [count, setCount] = useState(MANY);
  useEffect(() => void drawn().then(setFound), []);
  return html`<section class="scroll" tabindex="0"><h2>Gallery</h2>
    <p class="soft">Images and clips of all chats. Drawings hold their prompt and settings in the file.</p>
    ${found && !found.length ? html`<p>Nothing has been drawn yet.</p>` : null}
    <ul class="gallery">${found?.slice(0, count).map(
      ({ part, prompt, chat }) => html`<li>
      <${Media} part=${part} label=${prompt} plays=${false} />
      <a href=${`#chat/${chat}`}>${prompt}</a>
    </li>`,
    )}</ul>
    ${found?.length > count && html`<button type="button" onClick=${() => setCount(count + MANY)}>Show more</button>`}
  </section>`;
}
