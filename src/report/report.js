// The report's timeline. Reads the JSON beside it, draws tracks over one time axis.
// Text of the log is only ever set as text content, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const { axis, rows, texts, truth } = data;
const count = rows.x.length;
if (!count) return;

// ---- Rows and time ----

// Row that begins a new stretch -> its break.
const breaks = new Map(axis.breaks.map((b) => [b.row, b]));
// A row covers (left, x]: its ticks' periods, but never more than the space after the row before it.
const left = rows.x.map((x, i) => {
  const width = axis.period_ms * rows.ticks[i];
  if (i === 0) return x - width;
  return Math.max(rows.x[i - 1], x - width * (breaks.has(i) ? 1 : 1.5));
});
const whole = { a: left[0], b: Math.max(rows.x[count - 1], left[0] + 1) };
const view = { ...whole };
const start = BigInt(axis.start_ns);

/// The row at run time x; the nearest one where there is none.
function rowAt(x) {
  let low = 0;
  let high = count - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows.x[middle] < x) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && x < left[low] && x - rows.x[low - 1] < left[low] - x) return low - 1;
  return low;
}

/// First and last row that can be seen.
const visible = () => [rowAt(view.a), rowAt(view.b)];

/// Stretches of visible rows with the same key; null keys are left out.
function spans(keyOf) {
  const found = [];
  const [first, last] = visible();
  for (let i = first; i <= last; i++) {
    const key = keyOf(i);
    const open = found[found.length - 1];
    if (open && open.key === key && open.last === i - 1 && !breaks.has(i)) {
      open.last = i;
      open.b = rows.x[i];
    } else if (key !== null) {
      found.push({ key, first: i, last: i, a: left[i], b: rows.x[i] });
    }
  }
  return found;
}

/// Index of the element of a list sorted by x that is nearest; -1 of an empty list.
function nearestIndex(list, x) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle].x < x) low = middle + 1;
    else high = middle;
  }
  if (low === list.length) return low - 1;
  return low > 0 && x - list[low - 1].x < list[low].x - x ? low - 1 : low;
}

// ---- Numbers for humans ----

const fixed = (v, digits) => (v === null || v === undefined ? "–" : v.toFixed(digits).replace(/^-(?=[\d.]*[1-9])/, "−").replace(/^-/, ""));
const significant = (v) => fixed(v, Math.abs(v) >= 100 ? 0 : Math.abs(v) >= 10 ? 1 : 2);
const millis = (ms) => (ms < 1 && ms > 0 ? `${Math.round(ms * 1000)}\u00a0µs` : ms < 999.5 ? `${significant(ms)}\u00a0ms` : `${significant(ms / 1000)}\u00a0s`);

/// Run time: 12.3 s, 3:05.2, 1:02:05.
function clock(ms, digits = 1) {
  const s = ms / 1000;
  if (whole.b - whole.a < 100e3) return `${fixed(s, digits)}\u00a0s`;
  const pad = (v, width) => v.toFixed(width > 2 ? digits : 0).padStart(width, "0");
  const seconds = pad(s % 60, digits ? 3 + digits : 2);
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes}:${seconds}`;
  return `${Math.floor(minutes / 60)}:${pad(minutes % 60, 2)}:${seconds}`;
}
const runTime = (x, digits) => clock(Math.max(0, x - whole.a), digits);

/// "0.4 s earlier".
function apart(ms) {
  if (Math.abs(ms) < 0.5) return "at this instant";
  const size = Math.abs(ms) < 1000 ? `${Math.round(Math.abs(ms))}\u00a0ms` : clock(Math.abs(ms));
  return `${size} ${ms < 0 ? "earlier" : "later"}`;
}

/// Time of day (UTC) of a row, or "" where the log's time is no date.
function timeOfDay(i) {
  const ms = Number(start / 1000000n) + rows.at[i];
  if (ms < 978307200000 || ms > 8.64e15) return "";
  return `${new Date(ms).toISOString().slice(11, 23)} UTC`;
}

const tickName = (i) => {
  const [first, last] = [rows.tick[i] - rows.ticks[i] + 1, rows.tick[i]];
  return rows.ticks[i] > 1 ? `Ticks ${first}–${last}` : `Tick ${last}`;
};

// ---- Elements ----

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((c) => c !== null && c !== undefined));
  return element;
}

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes ?? {})) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const MODALITY_COLOURS = new Map([
  ["camera", "var(--camera)"], ["audio", "var(--audio)"], ["text", "var(--text)"], ["telemetry", "var(--telemetry)"],
]);
const modalityColour = (name) => MODALITY_COLOURS.get(name) ?? "var(--other)";
const listColour = (index) => `var(--c${index % 8})`;

function legend(entries) {
  const items = entries.map(([name, colour]) => {
    const swatch = make("i");
    swatch.style.setProperty("--c", colour);
    return make("span", "", swatch, name);
  });
  return make("span", "legend", ...items);
}
