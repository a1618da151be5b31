/** Results of `lwm eval needle` as a heat map whose cells open questions and answers. */
import { json } from "./api.js";
import { html, useEffect, useState } from "./vendor/preact.js";

const SECONDS = 3;
const ABOUT = "Answers by length of the context and depth of the needle";
const [CELL_WIDTH, CELL_HEIGHT, LEFT, TOP] = [92, 44, 64, 8];

/** @param {string} id */
const encoded = (id) => id.split("/").map(encodeURIComponent).join("/");

/** @param {number} tokens */
const short = (tokens) =>
  tokens % 1024 ? tokens.toLocaleString("en") : tokens >= 1 << 20 ? `${tokens / (1 << 20)}M` : `${tokens / 1024}K`;

/** Returns the header and the rows of a file of results. @param {string} text */
function parsed(text) {
  const [header, ...rows] = text
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  if (!header?.evaluation || rows.some((row) => !row.context_length)) throw new Error("no results");
  return { header, rows };
}

/** Returns the values of a field in order. */
const values = (rows, name) => [...new Set(rows.map((row) => row[name] ?? null))].sort((one, other) => one - other);

/** Returns rows by their context and depth. */
function cellsOf({ header, rows }) {
  const lengths = header.grid?.lengths ?? values(rows, "context_length");
  const depths = header.grid?.depths ?? values(rows, "depth_percent");
  const at = (length, depth) =>
    rows
      .map((row, number) => ({ ...row, number }))
      .filter((row) => row.context_length === length && (row.depth_percent ?? null) === depth);
  return { lengths, depths, at };
}

function Map({ results, chosen, choose }) {
  const { lengths, depths, at } = cellsOf(results);
  const cell = (length, column, depth, row) => {
    const found = at(length, depth);
    const score = found.reduce((sum, each) => sum + each.score, 0);
    const share = found.length ? score / found.length : 0;
    const words = found.length ? `${Number(score.toFixed(1))}/${found.length}` : "";
    const label = `${short(length)} tokens${depth === null ? "" : `, depth ${depth}%`}: ${words || "not asked yet"}`;
    const pick = () => found.length && choose([length, depth]);
    const key = (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), pick());
    const isChosen = chosen?.[0] === length && chosen?.[1] === depth;
    const spot = `translate(${LEFT + column * CELL_WIDTH} ${TOP + row * CELL_HEIGHT})`;
    return html`<g role="button" tabindex="0" aria-label=${label} aria-pressed=${isChosen} onClick=${pick} onKeyDown=${key}
      class=${found.length ? "cell" : "cell open"} style=${{ "--share": share }} transform=${spot}>
      <rect width=${CELL_WIDTH - 4} height=${CELL_HEIGHT - 4} rx="6" />
      <text x=${CELL_WIDTH / 2 - 2} y=${CELL_HEIGHT / 2 + 3}>${words}</text></g>`;
  };
  const [width, height] = [LEFT + lengths.length * CELL_WIDTH, TOP + depths.length * CELL_HEIGHT];
  const axis = (x, y, words, anchor) => html`<text class="axis" x=${x} y=${y} text-anchor=${anchor}>${words}</text>`;
  const line = (depth, row) =>
    axis(LEFT - 10, TOP + (row + 0.5) * CELL_HEIGHT + 3, depth === null ? "all" : `${depth}%`, "end");
  const foot = (length, column) => axis(LEFT + (column + 0.5) * CELL_WIDTH - 2, height + 18, short(length), "middle");
  return html`<svg class="map" viewBox=${`0 0 ${width} ${height + 28}`} width=${width} role="group" aria-label=${ABOUT}>
    ${depths.map(line)} ${lengths.map(foot)}
    ${depths.flatMap((depth, row) => lengths.map((length, column) => cell(length, column, depth, row)))}
  </svg>`;
}

function Prompt({ id, number }) {
  const [text, setText] = useState("");
  const open = async (event) => {
    if (!event.target.open || text) return;
    const found = await json(`/v1/evaluations-prompt/${encoded(id)}?row=${number}`).catch((error) => error);
    setText(found.prompt ?? found.message);
  };
  return html`<details onToggle=${open}><summary>Prompt</summary><pre tabindex="0">${text || "…"}</pre></details>`;
}

/** Questions and answers of a cell. */
function Rows({ id, rows }) {
  const one = (row) => html`<article class="card">
    <p><strong>${row.score === 1 ? "Found" : row.score ? "Found in part" : "Not found"}</strong>
      <span class="soft"> ${row.city ?? row.question ?? ""}, ${row.prompt_tokens?.toLocaleString("en")} tokens</span></p>
    <dl><dt>Asked for</dt><dd>${[row.answer].flat().join(", ")}</dd>
      <dt>Answer</dt><dd><pre tabindex="0">${row.response}</pre></dd></dl>
    ${id && html`<${Prompt} key=${`${id}${row.number}`} id=${id} number=${row.number} />`}
  </article>`;
  return html`<div aria-live="polite">${rows.map(one)}</div>`;
}

export function Needles() {
  const [listed, setListed] = useState(/** @type {any[]} */ ([]));
  const [id, setId] = useState("");
  const [results, setResults] = useState(/** @type {any} */ (null));
  const [chosen, choose] = useState(/** @type {any} */ (null));
  const [note, setNote] = useState("");
  const open = (next) => (setId(next), choose(null), setResults(null));
  const one = listed.find((each) => each.id === id);
  useEffect(() => {
    const list = () =>
      json("/v1/evaluations").then(
        ({ data }) => setListed(data),
        ({ message }) => setNote(message),
      );
    list();
    const timer = setInterval(() => document.hidden || list(), 1000 * SECONDS);
    return () => clearInterval(timer);
  }, []);
  useEffect(() => void (!id && !results && listed.length && open(listed[0].id)), [listed]);
  useEffect(() => {
    if (!id) return;
    const abort = new AbortController();
    const take = (found) => (setResults(found), setNote(""));
    const fail = (error) => error.name === "AbortError" || setNote(error.message);
    json(`/v1/evaluations/${encoded(id)}`, undefined, abort.signal).then(take, fail);
    return () => abort.abort();
  }, [id, one?.updated]);
  const file = async ({ target }) => {
    try {
      const found = parsed(await target.files[0].text());
      target.value = "";
      open("");
      setResults(found);
      setNote("");
    } catch {
      setNote("This is no results.jsonl of lwm eval needle.");
    }
  };
  const pick = (event) => open(event.target.value);
  const options = listed.map(
    (each) => html`<option value=${each.id}>${each.id === "-" ? each.evaluation : each.id}: ${each.model}</option>`,
  );
  return html`<section class="scroll" tabindex="0"><h2>Needle in a haystack</h2>
    <p class="soft">Numbers hidden in a long text, and asked for: found and asked in each cell.</p>
    <p class="row">
      ${listed.length > 0 && html`<select aria-label="Results" value=${id} onChange=${pick}>${options}</select>`}
      <label class="button">Open results.jsonl<input type="file" accept=".jsonl" class="hidden" onChange=${file} /></label>
      ${one && one.expected ? html`<span class="soft">${one.rows} of ${one.expected} answers</span>` : null}</p>
    ${!listed.length && !results && html`<p>Start the server with <code>--evaluations FOLDER</code>, or open a file.</p>`}
    ${note && html`<p class="error" role="alert">${note}</p>`}
    ${results && html`<div class="wide" tabindex="0"><${Map} results=${results} chosen=${chosen} choose=${choose} /></div>`}
    ${results && chosen ? html`<${Rows} id=${id} rows=${cellsOf(results).at(chosen[0], chosen[1])} />` : null}
  </section>`;
}
