/** Requests to the server that has sent this page, and to no other. */

/** An answer of the server that is an error. */
export class ServerError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Where a key is kept until the browser's tab is closed. */
export const KEY = "lwm-key";

/**
 * Sends a request.
 * @param {string} path
 * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, { method, body, headers = {}, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const sent = { ...headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) sent["content-type"] = "application/json";
  const content = body === undefined || isForm ? body : JSON.stringify(body);
  const verb = method ?? (body === undefined ? "GET" : "POST");
  let response;
  try {
    response = await fetch(path, { method: verb, body: content, headers: sent, signal });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => null);
  throw new ServerError(response.status, found?.error?.message ?? `status ${response.status}`);
}

/**
 * Returns the JSON of an answer.
 * @param {string} path @param {any} [body] @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function json(path, body, signal) {
  return (await request(path, { body, signal })).json();
}

/**
 * Yields the data of server-sent events, and throws those that are errors, and what breaks the
 * connection. An answer that another tab has stopped ends early.
 * @param {Response} response
 * @returns {AsyncGenerator<any>}
 */
export async function* events(response) {
  const reader = /** @type {ReadableStream} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += decoder.decode(value, { stream: true });
      const blocks = held.split("\n\n");
      held = /** @type {string} */ (blocks.pop());
      for (const block of blocks) {
        const line = block.split("\n").find((each) => each.startsWith("data: "));
        if (!line) continue;
        if (line === "data: [DONE]") return;
        const data = JSON.parse(line.slice(6));
        if (data.error) throw new ServerError(500, data.error.message);
        yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @returns {Promise<import("./types").Server>} */
export async function describe() {
  const [models, props] = await Promise.all([json("/v1/models"), json("/props")]);
  const model = models.data[0];
  return {
    name: model.id,
    context: model.max_model_len,
    sees: model.architecture.input_modalities.includes("image"),
    draws: model.architecture.output_modalities.includes("image"),
    maxN: props.max_n ?? 8,
    defaults: props.default_generation_settings.params,
    imageSettings: props.image_settings ?? null,
  };
}

/** Returns a new random id, for turns, conversations and streams. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
}

/** Returns a random seed. */
export function newSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
