/** Events in components, and calls that wait for the next frame. */
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
