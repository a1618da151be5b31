/** Events in components, the focus, the clipboard, and calls that wait for the next frame. */
import { useEffect } from "./vendor/preact.js";

/**
 * Calls a function at each event, as long as the component is there.
 * @param {EventTarget} target @param {string} name @param {(event: any) => unknown} call @param {unknown[]} inputs
 */
export function useEvent(target, name, call, inputs = []) {
  useEffect(() => {
    target.addEventListener(name, call);
    return () => target.removeEventListener(name, call);
  }, inputs);
}

/** Calls a function at the next frame, once. @param {() => void} call */
export function paced(call) {
  let waits = false;
  return () => {
    if (!waits) requestAnimationFrame(() => ((waits = false), call()));
    waits = true;
  };
}

/** Takes the focus once an element is there; given as its `ref`. @param {HTMLElement | null} element */
export const focused = (element) => element?.focus();

/** Copies a text, also where a page over plain HTTP has no clipboard. @param {string} text */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
