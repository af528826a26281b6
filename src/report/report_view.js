
// ---- Layout ----

const tracksBox = document.getElementById("tracks");
document.getElementById("timeline").hidden = false;
document.getElementById("hint").textContent = matchMedia("(pointer: coarse)").matches
  ? "Slide a finger along the tracks to read them."
  : "Drag to zoom, double-click for the whole run, click to hold a tick; arrow keys step.";

const defs = svg("svg", { width: 0, height: 0, style: "position:absolute", "aria-hidden": "true" });
const hatch = svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
hatch.append(svg("path", { d: "M3 0V6" }));
defs.append(hatch);
document.body.append(defs);

const over = make("div", "over");
const clip = make("div", "clip");
const cursor = make("div", "cursor");
const bubble = make("div", "bubble");
over.append(clip, bubble);

const overview = make("div", "overview");
const overviewWindow = make("div", "window");
const axisPlot = make("div", "plot", overview);
const axisCanvas = new Canvas(axisPlot, 20);
tracksBox.append(make("div", "axis track", make("div", "name"), axisPlot, make("div", "val")));

const drawn = [];
for (const { title, note, tracks, key } of groups) {
  const heading = make("h3", "", title, note ? make("small", "", note) : null, key?.() ?? null);
  const box = make("div", "group", heading);
  for (const track of tracks) {
    const name = make("div", "name", track.name, track.note ? make("small", "", track.note) : null);
    name.title = track.name;
    const plot = make("div", "plot");
    plot.style.height = `${track.height}px`;
    const value = make("div", "val");
    box.append(make("div", "track", name, plot, value));
    drawn.push({ track, value, canvas: new Canvas(plot, track.height) });
  }
  tracksBox.append(box);
}
tracksBox.append(over);

function drawOverview() {
  const at = (x) => `${((x - whole.a) / (whole.b - whole.a)) * 100}%`;
  const spot = (a, b, colour) => {
    const element = make("div", "spot");
    Object.assign(element.style, { left: at(a), width: `calc(${at(b)} - ${at(a)})` });
    element.style.setProperty("--c", colour);
    return element;
  };
  const spots = data.health.flatMap((change, index) => {
    if (change.state !== "DEGRADED" && change.state !== "FAILED") return [];
    return [spot(change.x, data.health[index + 1]?.x ?? whole.b, HEALTH_COLOURS[change.state])];
  });
  overview.replaceChildren(...spots, overviewWindow);
  overviewWindow.style.left = at(view.a);
  overviewWindow.style.width = `calc(${at(view.b)} - ${at(view.a)})`;
  overviewWindow.hidden = !isZoomed();
}

/// Steps between labels: 1, 2, 5 times a power of ten, then minutes and hours.
function niceStep(least) {
  for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 10e3, 15e3, 30e3, 60e3, 120e3, 300e3, 600e3, 1800e3, 3600e3, 7200e3]) {
    if (step >= least) return step;
  }
  return Math.ceil(least / 14400e3) * 14400e3;
}

function drawAxis(width) {
  axisCanvas.clear(width);
  const step = niceStep(((view.b - view.a) / width) * 84);
  const digits = step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3;
  for (let t = Math.ceil((view.a - whole.a) / step) * step; t <= view.b - whole.a; t += step) {
    const x = axisCanvas.px(whole.a + t);
    axisCanvas.add("line", { x1: x, x2: x, y1: 15, y2: 20, class: "grid" });
    const anchor = x < 14 ? "start" : x > width - 20 ? "end" : "middle";
    axisCanvas.add("text", { x: anchor === "end" ? width : Math.max(x, 0), y: 11, "text-anchor": anchor }, clock(t, digits));
  }
}

const isZoomed = () => view.a > whole.a || view.b < whole.b;

/// A line across all tracks at run time x, if it can be seen.
function across(x, className, label) {
  const share = (x - view.a) / (view.b - view.a);
  if (share < 0 || share > 1) return [];
  const line = make("div", className);
  line.style.left = `${share * 100}%`;
  if (label) line.append(make("span", share > 0.8 ? "before" : "", label));
  return [line];
}

function draw() {
  const width = axisPlot.clientWidth;
  if (!width) return;
  drawAxis(width);
  drawOverview();
  for (const { track, canvas } of drawn) {
    canvas.clear(width);
    track.draw(canvas);
  }
  document.getElementById("range").textContent = isZoomed() ? `${runTime(view.a)} to ${runTime(view.b)}` : "";
  document.getElementById("zoom-reset").disabled = document.getElementById("zoom-out").disabled = !isZoomed();
  showCursor();
}

// ---- Cursor ----

const DRAG_PX = 5;
let drag = null;
const selection = make("div", "select");

// Something to look at before the first click: the last tick that resembles an earlier one.
let held = null;
let hovered = null;
const initial = Math.max(rows.nearest.findLastIndex((n) => n.length > 0), 0);
const current = () => hovered ?? held ?? initial;
const actions = {
  hold(i) {
    held = i;
    hovered = null;
    reveal(i);
    showCursor();
  },
  release() {
    held = null;
    showCursor();
  },
};

function showCursor() {
  const i = current();
  const middle = (left[i] + rows.x[i]) / 2;
  const share = (middle - view.a) / (view.b - view.a);
  const isHeld = held === i;
  cursor.className = isHeld ? "cursor held" : "cursor";
  cursor.style.left = `${share * 100}%`;
  const lines = axis.breaks.flatMap((b) => {
    if (b.why === "gap") return across(left[b.row], "break gap", `pause of ${clock(b.jump_ms, 0)}`);
    return across(left[b.row], "break", "clock went back");
  });
  const moments = rows.nearest[i].flatMap(([row]) => (row === null ? [] : across(rows.x[row], "moment")));
  clip.replaceChildren(...lines, ...moments, cursor, ...(drag?.zooming ? [selection] : []));
  bubble.hidden = share < 0 || share > 1;
  bubble.className = isHeld ? "bubble held" : "bubble";
  bubble.style.left = `clamp(56px, ${share * 100}%, calc(100% - 56px))`;
  bubble.textContent = `${tickName(i).replace(/^Ticks? /, "")} · ${runTime(rows.x[i])}`;
  for (const { track, value } of drawn) {
    const shown = track.value(i);
    const [text, className] = Array.isArray(shown) ? shown : [shown, ""];
    value.textContent = text;
    value.title = text;
    value.className = `val ${className}`;
  }
  inspect(i, isHeld, actions);
}

// One redraw a frame, and only for another row.
let waiting = false;
function hover(row) {
  if (row === hovered) return;
  hovered = row;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    showCursor();
  });
}

// ---- Zoom ----

const NARROWEST_ROWS = 8;
function zoomTo(a, b) {
  const narrowest = Math.min(whole.b - whole.a, axis.period_ms * axis.ticks_per_row * NARROWEST_ROWS);
  const width = Math.min(Math.max(b - a, narrowest), whole.b - whole.a);
  const middle = (a + b) / 2;
  view.a = Math.min(Math.max(middle - width / 2, whole.a), whole.b - width);
  view.b = view.a + width;
  draw();
}
const zoomBy = (factor, around = (view.a + view.b) / 2) => zoomTo(around - (around - view.a) * factor, around + (view.b - around) * factor);
const reset = () => zoomTo(whole.a, whole.b);

/// Moves the view so that row i is in it.
function reveal(i) {
  const width = view.b - view.a;
  if (rows.x[i] > view.b || left[i] < view.a) zoomTo(rows.x[i] - width / 2, rows.x[i] + width / 2);
}

document.getElementById("zoom-in").addEventListener("click", () => zoomBy(0.5, held === null ? undefined : rows.x[held]));
document.getElementById("zoom-out").addEventListener("click", () => zoomBy(2));
document.getElementById("zoom-reset").addEventListener("click", reset);

// ---- Pointer and keys ----

const timeAt = (event) => {
  const box = axisPlot.getBoundingClientRect();
  return view.a + (Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1)) * (view.b - view.a);
};
const isOverPlots = (event) => {
  const box = axisPlot.getBoundingClientRect();
  return event.clientX >= box.left && event.clientX <= box.right && !overview.contains(event.target);
};

tracksBox.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !isOverPlots(event)) return;
  drag = { from: timeAt(event), x: event.clientX, zooming: false };
});
tracksBox.addEventListener("pointermove", (event) => {
  if (drag && event.pointerType === "mouse" && Math.abs(event.clientX - drag.x) > DRAG_PX) {
    if (!drag.zooming) tracksBox.setPointerCapture(event.pointerId);
    drag.zooming = true;
  }
  if (!drag?.zooming && !isOverPlots(event)) return;
  hover(rowAt(timeAt(event)));
  if (drag?.zooming) {
    const [a, b] = [drag.from, timeAt(event)].sort((p, q) => p - q).map((x) => ((x - view.a) / (view.b - view.a)) * 100);
    Object.assign(selection.style, { left: `${a}%`, width: `${b - a}%` });
    clip.append(selection);
  }
});
tracksBox.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { from, zooming } = drag;
  drag = null;
  selection.remove();
  if (zooming) {
    const [a, b] = [from, timeAt(event)].sort((p, q) => p - q);
    zoomTo(a, b);
  } else {
    const row = rowAt(timeAt(event));
    held = held === row ? null : row;
    showCursor();
  }
});
tracksBox.addEventListener("pointercancel", () => {
  drag = null;
  selection.remove();
});
tracksBox.addEventListener("pointerleave", (event) => {
  if (drag?.zooming || event.pointerType !== "mouse") return;
  hover(null);
});
tracksBox.addEventListener("dblclick", (event) => {
  if (isOverPlots(event)) reset();
});
tracksBox.addEventListener("wheel", (event) => {
  const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
  if (event.ctrlKey || event.metaKey) zoomBy(Math.exp(event.deltaY * 0.004), timeAt(event));
  else if (sideways && isZoomed()) {
    const step = (event.deltaX / axisPlot.clientWidth) * (view.b - view.a);
    zoomTo(view.a + step, view.b + step);
  } else return;
  event.preventDefault();
}, { passive: false });

overview.addEventListener("pointerdown", (event) => {
  overview.setPointerCapture(event.pointerId);
  panTo(event);
});
overview.addEventListener("pointermove", (event) => {
  if (overview.hasPointerCapture(event.pointerId)) panTo(event);
});
function panTo(event) {
  const box = overview.getBoundingClientRect();
  const x = whole.a + ((event.clientX - box.left) / box.width) * (whole.b - whole.a);
  const width = view.b - view.a;
  zoomTo(x - width / 2, x + width / 2);
}

tracksBox.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 10 : 1;
  const last = count - 1;
  const keys = {
    ArrowLeft: () => actions.hold(Math.max(current() - step, 0)),
    ArrowRight: () => actions.hold(Math.min(current() + step, last)),
    Home: () => actions.hold(0),
    End: () => actions.hold(last),
    "+": () => zoomBy(0.5, rows.x[current()]),
    "=": () => zoomBy(0.5, rows.x[current()]),
    "-": () => zoomBy(2, rows.x[current()]),
    0: reset,
    Escape: actions.release,
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  keys[event.key]();
  event.preventDefault();
});

// ---- Start ----

if (data.thumbs.length) {
  const first = new Image();
  first.addEventListener("load", () => {
    if (first.naturalHeight) aspect = Math.min(Math.max(first.naturalWidth / first.naturalHeight, 0.5), 3);
    draw();
  });
  first.src = data.thumbs[0].uri;
}
let drawnWidth = 0;
new ResizeObserver(() => {
  if (axisPlot.clientWidth !== drawnWidth) {
    drawnWidth = axisPlot.clientWidth;
    draw();
  }
}).observe(axisPlot);
addEventListener("beforeprint", draw);
addEventListener("afterprint", draw);
draw();
