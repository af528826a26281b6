
// ---- Tracks: { name, note, height, draw(canvas), value(row) -> text or [text, class] } ----

const groups = [];
const group = (title, note, tracks, key) => {
  if (tracks.length) groups.push({ title, note, tracks, key });
};

let aspect = 4 / 3;
function filmTrack(camera) {
  const thumbs = data.thumbs.filter((t) => t.camera === camera);
  const gaps = thumbs.slice(1).map((t, i) => t.x - thumbs[i].x).sort((a, b) => a - b);
  const usualGap = gaps[gaps.length >> 1] ?? 0;
  return {
    name: data.cameras[camera] || "camera",
    height: 72,
    draw(canvas) {
      // Equal slots, no more than there are pictures, each with the one nearest to its middle; hatched where the camera
      // showed none for longer than usual.
      const room = Math.round(canvas.width / (canvas.height * aspect + 2));
      const pictures = usualGap > 0 ? Math.ceil((view.b - view.a) / usualGap) : 1;
      const slots = Math.max(Math.min(room, pictures), 1);
      const step = canvas.width / slots;
      const span = (view.b - view.a) / slots;
      const width = Math.min(step - 2, canvas.height * aspect);
      for (let slot = 0; slot < slots; slot++) {
        const middle = view.a + (slot + 0.5) * span;
        const thumb = thumbs[nearestIndex(thumbs, middle)];
        const place = { y: 0, height: canvas.height };
        if (thumb && Math.abs(thumb.x - middle) <= Math.max(span / 2, usualGap)) {
          const x = slot * step + (step - 2 - width) / 2;
          canvas.add("image", { ...place, x, width, href: thumb.uri, preserveAspectRatio: "xMidYMid slice" });
        } else canvas.add("rect", { ...place, x: slot * step, width: step - 2, class: "missing" });
      }
    },
    value: () => "",
  };
}

function eventTrack(event) {
  const on = truth.events.find((t) => t.name === event.name)?.on ?? [];
  const isOn = (x) => on.some(([a, b]) => x >= a && x < b);
  return {
    name: event.name,
    note: on.length ? separation(event.v, isOn) : "",
    height: 34,
    draw(canvas) {
      const y = scale(canvas.height, 0, 1);
      canvas.line(y(0.5), "half");
      canvas.steps((i) => event.v[i], y, { colour: "var(--accent)", edge: true });
      for (const [a, b] of on) canvas.box(a, b, 0.5, canvas.height - 0.5, "truth");
    },
    value: (i) => [fixed(event.v[i], 2), isOn(rows.x[i]) ? "true" : ""],
  };
}

/// Mean score where the event is true and where it is not.
function separation(scores, isOn) {
  const sums = [[0, 0], [0, 0]];
  scores.forEach((v, i) => {
    if (v === null) return;
    const sum = sums[isOn(rows.x[i]) ? 1 : 0];
    sum[0] += v;
    sum[1] += 1;
  });
  if (!sums[0][1] || !sums[1][1]) return "";
  return `mean ${fixed(sums[1][0] / sums[1][1], 2)} on, ${fixed(sums[0][0] / sums[0][1], 2)} off`;
}

function sceneTrack() {
  const truthBand = truth.scene.length ? 18 : 0;
  const best = (i) => rows.scene.reduce((a, s, index) => ((s.v[i] ?? -1) > (a < 0 ? -1 : rows.scene[a].v[i] ?? -1) ? index : a), -1);
  return {
    name: "class shares",
    note: truthBand ? "below: ground truth" : "",
    height: 58 + truthBand,
    draw(canvas) {
      const y = scale(58, 0, 1, 0);
      const below = (index, i) => rows.scene.slice(0, index).reduce((sum, s) => sum + (s.v[i] ?? 0), 0);
      rows.scene.forEach((scene, index) => {
        const value = (i) => (scene.v[i] === null ? null : below(index, i) + scene.v[i]);
        canvas.steps(value, y, { base: (i) => below(index, i), colour: listColour(index), className: "stack" });
      });
      for (const [a, b, name] of truth.scene) canvas.ribbon(a, b, name, { className: "outline", top: 61, bottom: 0 });
    },
    value(i) {
      const index = best(i);
      return index < 0 ? "–" : `${rows.scene[index].name} ${fixed(rows.scene[index].v[i], 2)}`;
    },
  };
}

const UNITS = [[/_mps2$/, "m/s²"], [/_mps$/, "m/s"], [/_rps$/, "rad/s"], [/_deg$/, "°"], [/_m$/, "m"], [/_rad$/, "rad"]];
// Truth further apart than this is not joined.
const BROKEN_MS = 2000;
function motionTrack(motion) {
  const reference = truth.motion.find((t) => t.name === motion.name);
  const unit = UNITS.find(([pattern]) => pattern.test(motion.name)) ?? [/$^/, ""];
  const known = [...motion.v, ...(reference?.v ?? [])].filter((v) => v !== null);
  const extent = known.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [0, 0]);
  const points = reference?.x.map((x, k) => ({ x, v: reference.v[k] })) ?? [];
  const atTruth = (i) => points[nearestIndex(points, rows.x[i])]?.v ?? null;
  return {
    name: motion.name.replace(unit[0], "").replaceAll("_", " "),
    note: unit[1],
    height: 52,
    draw(canvas) {
      const y = scale(canvas.height, extent[0], extent[1], 4);
      canvas.line(y(0), "grid");
      canvas.steps((i) => motion.v[i], y, { colour: "var(--accent)", edge: true, className: null });
      const shown = points.filter(({ x, v }) => v !== null && canvas.px(x) > -20 && canvas.px(x) < canvas.width + 20);
      const path = shown.map(({ x, v }, k) => `${k && x - shown[k - 1].x < BROKEN_MS ? "L" : "M"}${canvas.px(x).toFixed(1)} ${y(v).toFixed(1)}`);
      if (path.length) canvas.add("path", { d: path.join(""), class: "reference" });
      canvas.add("text", { x: 4, y: 12, class: "halo" }, significant(extent[1]));
      if (extent[0] < 0) canvas.add("text", { x: 4, y: canvas.height - 4, class: "halo" }, significant(extent[0]));
    },
    value(i) {
      const expected = atTruth(i);
      return fixed(motion.v[i], 2) + (expected === null ? "" : ` / ${fixed(expected, 2)}`);
    },
  };
}

function captionTrack() {
  return {
    name: "text so far",
    height: 24,
    draw(canvas) {
      for (const span of spans((i) => rows.caption[i]?.[0] ?? null)) {
        const caption = data.captions[span.key];
        const text = caption.text.replace(/\s+/g, " ");
        canvas.ribbon(span.a, span.b, text, { className: caption.done ? "" : "open", title: `From tick ${caption.tick}: ${text}` });
      }
    },
    value(i) {
      if (!rows.caption[i]) return ["none", "off"];
      const [caption, known] = rows.caption[i];
      return data.captions[caption].done && known >= [...data.captions[caption].text].length ? "complete" : "growing";
    },
  };
}

const isMissing = (column) => (i) => column.missing[i] > 0 && column.missing[i] >= rows.frames[i];

function gateTrack(modality) {
  return {
    name: modality.name,
    height: 28,
    draw(canvas) {
      const y = scale(canvas.height, 0, 1, 1);
      canvas.missing(isMissing(modality));
      canvas.steps((i) => modality.gate[i], y, { colour: modalityColour(modality.name), edge: true });
    },
    value: (i) => (isMissing(modality)(i) ? ["missing", "off"] : fixed(modality.gate[i], 2)),
  };
}

function qualityTrack(modality) {
  return {
    name: modality.name,
    height: 28,
    draw(canvas) {
      const y = scale(canvas.height, 0, 1, 1);
      canvas.missing(isMissing(modality));
      const value = (i) => (isMissing(modality)(i) ? null : modality.quality[i]);
      canvas.steps(value, y, { colour: modalityColour(modality.name), edge: true, className: "faint" });
      let free = -1;
      for (const span of spans((i) => modality.reasons[i] || null)) {
        canvas.box(span.a, span.b, canvas.height - 3, canvas.height, "solid", "var(--bad)");
        const x = Math.max(canvas.px(span.a), 0) + 3;
        if (x < free || x > canvas.width - 30) continue;
        const label = canvas.add("text", { x, y: canvas.height - 7, class: "halo" }, texts[span.key]);
        free = x + (label.getComputedTextLength?.() ?? 60) + 8;
      }
    },
    value(i) {
      if (isMissing(modality)(i)) return ["missing", "off"];
      return [fixed(modality.quality[i], 2), modality.reasons[i] ? "bad" : ""];
    },
  };
}

/// Columns stacked on each other, one colour each.
function stack(canvas, columns, colour, high) {
  const y = scale(canvas.height, 0, high, 1);
  const below = new Array(count).fill(0);
  columns.forEach((column, index) => {
    const base = below.slice();
    column.forEach((v, i) => (below[i] += v ?? 0));
    canvas.steps((i) => (column[i] ? below[i] : null), y, { base: (i) => base[i], colour: colour(index), className: "stack" });
  });
  return y;
}

const columnSums = (columns) => rows.x.map((_, i) => columns.reduce((sum, column) => sum + (column[i] ?? 0), 0));

function tokensTrack() {
  const columns = rows.modalities.map((m) => m.tokens);
  const sums = columnSums(columns);
  const high = sums.reduce((a, b) => Math.max(a, b), 1);
  return {
    name: "per tick",
    height: 48,
    draw(canvas) {
      stack(canvas, columns, (index) => modalityColour(rows.modalities[index].name), high);
      canvas.add("text", { x: 4, y: 12, class: "halo" }, fixed(high, 0));
    },
    value: (i) => fixed(sums[i], sums[i] % 1 ? 1 : 0),
  };
}

function latencyTrack() {
  const columns = rows.stages.map((s) => s.v);
  const sums = columnSums(columns);
  const deadline = rows.deadline.reduce((a, b) => Math.max(a, b), 0);
  const high = Math.max(sums.reduce((a, b) => Math.max(a, b), 0), rows.end_to_end.reduce((a, b) => Math.max(a, b), 0), deadline) * 1.06 || 1;
  return {
    name: "stages, end to end",
    note: "sample → published",
    height: 110,
    draw(canvas) {
      const y = stack(canvas, columns, listColour, high);
      canvas.steps((i) => rows.end_to_end[i] || null, y, { colour: "var(--ink)", edge: true, className: null });
      if (deadline > 0) {
        canvas.line(y(deadline), "deadline");
        canvas.add("text", { x: 4, y: y(deadline) - 4, class: "halo" }, `deadline ${millis(deadline)}`);
      }
      for (const span of spans((i) => (rows.misses[i] ? 1 : null))) canvas.box(span.a, span.b, 0, 5, "solid", "var(--bad)");
    },
    value: (i) => [millis(rows.end_to_end[i] || sums[i]), rows.misses[i] ? "bad" : ""],
  };
}

function waitTrack() {
  const high = rows.wait.reduce((a, b) => Math.max(a, b ?? 0), 1);
  const overdue = (i) => /wait/i.test(texts[rows.close_reason[i]]);
  return {
    name: "wait for samples",
    note: "tick time → closed",
    height: 30,
    draw(canvas) {
      const y = scale(canvas.height, 0, high, 1);
      canvas.steps((i) => (overdue(i) ? null : rows.wait[i]), y, { colour: "var(--other)", className: "area", edge: true });
      canvas.steps((i) => (overdue(i) ? rows.wait[i] : null), y, { colour: "var(--warn)", className: "solid" });
    },
    value: (i) => (rows.wait[i] === null ? "–" : [millis(rows.wait[i]), overdue(i) ? "bad" : ""]),
  };
}

function planTrack() {
  const richest = rows.plan.find((p) => p) ?? 0;
  return {
    name: "plan",
    height: 20,
    draw(canvas) {
      for (const span of spans((i) => rows.plan[i] || null)) {
        const reasons = texts[rows.plan_reason[span.first]];
        const colour = span.key === richest ? "var(--ink-3)" : "var(--warn)";
        canvas.ribbon(span.a, span.b, texts[span.key], { colour, title: reasons ? `${texts[span.key]}: ${reasons}` : texts[span.key] });
      }
    },
    value: (i) => texts[rows.plan[i]],
  };
}

const HEALTH_COLOURS = { STARTING: "var(--ink-3)", NOMINAL: "var(--good)", DEGRADED: "var(--warn)", FAILED: "var(--bad)" };
const healthAt = (x) => data.health.findLast((h) => h.x <= x) ?? data.health[0];
function healthTrack() {
  return {
    name: "health",
    height: 20,
    draw(canvas) {
      data.health.forEach((change, index) => {
        const end = data.health[index + 1]?.x ?? whole.b;
        const name = change.state.toLowerCase();
        const text = [name, ...change.reasons].join(" · ");
        canvas.ribbon(index ? change.x : whole.a, end, text, { colour: HEALTH_COLOURS[change.state] });
      });
    },
    value: (i) => {
      const state = healthAt(rows.x[i]).state;
      return [state.toLowerCase(), state === "FAILED" || state === "DEGRADED" ? "bad" : ""];
    },
  };
}

// Kinds of marks, in the order of the log's numbers: [name, colour, glyph around (0, 0)].
const MARKS = [
  ["late, dropped", "var(--late)", "M0-4L4 0L0 4L-4 0Z"],
  ["late, folded", "var(--ink-3)", "M-3-3H3V3H-3Z"],
  ["overflow", "var(--overflow)", "M0 4L-4.5-4H4.5Z"],
  ["undecodable", "var(--undecodable)", "M-4-2.6L-2.6-4L0-1.4L2.6-4L4-2.6L1.4 0L4 2.6L2.6 4L0 1.4L-2.6 4L-4 2.6L-1.4 0Z"],
  ["sequence gap", "var(--ink-2)", "M-1-4H1V4H-1Z"],
];
const marksOf = rows.topics.map(() => []);
for (const mark of rows.marks) marksOf[mark[1]]?.push(mark);

function topicTrack(topic, index) {
  const marks = marksOf[index];
  const high = topic.used.reduce((a, b, i) => Math.max(a, b / rows.ticks[i]), 1);
  const lost = new Map();
  for (const [row, , kind, n] of marks) if (kind !== 1) lost.set(row, (lost.get(row) ?? 0) + n);
  return {
    name: topic.name,
    height: 24,
    draw(canvas) {
      const y = scale(canvas.height, 0, high, 1);
      canvas.missing(isMissing(topic));
      canvas.steps((i) => (topic.used[i] ? topic.used[i] / rows.ticks[i] : null), (v) => y(v * 0.55), { colour: "var(--fused)", className: "area" });
      for (const [row, , kind] of marks) {
        const x = canvas.px((left[row] + rows.x[row]) / 2);
        if (x < -5 || x > canvas.width + 5) continue;
        const [, colour, glyph] = MARKS[kind];
        canvas.add("path", { d: glyph, class: "solid", style: `--c:${colour}`, transform: `translate(${x.toFixed(1)} 6)` });
      }
    },
    value(i) {
      if (lost.has(i)) return [`−${lost.get(i)} lost`, "bad"];
      if (isMissing(topic)(i)) return ["missing", "off"];
      return [`${topic.used[i]} used`, topic.used[i] ? "" : "off"];
    },
  };
}

function markLegend() {
  const kinds = new Set(rows.marks.map((m) => m[2]));
  const entries = MARKS.filter((_, kind) => kinds.has(kind)).map(([name, colour, glyph]) => {
    const icon = svg("svg", { width: 10, height: 10, viewBox: "-5 -5 10 10", "aria-hidden": "true" });
    icon.append(svg("path", { d: glyph, style: `fill:${colour}` }));
    return make("span", "", icon, name);
  });
  return entries.length ? make("span", "legend", ...entries) : null;
}

const modalityLegend = () => legend(rows.modalities.map((m) => [m.name, modalityColour(m.name)]));
const hasTruth = truth.events.some((t) => t.on.length);
const said = (note) => (data.trained === false ? ["untrained: noise", note].filter(Boolean).join("; ") : note);

function epochTrack() {
  return {
    name: "epoch",
    height: 20,
    draw(canvas) {
      for (const span of spans((i) => rows.epoch[i])) canvas.ribbon(span.a, span.b, String(span.key), { className: "outline" });
    },
    value: (i) => String(rows.epoch[i]),
  };
}

group("Run", "", [
  ...(rows.epoch.some((e) => e > 1) ? [epochTrack()] : []),
  ...(data.health.length ? [healthTrack()] : []),
  ...(rows.plan.some((p) => p) ? [planTrack()] : []),
]);
group("Camera", "", data.thumbs.length ? data.cameras.map((_, camera) => filmTrack(camera)) : []);
group("Events", said(hasTruth ? "score 0 to 1, outlined where true; on, off: mean score there and elsewhere" : "score 0 to 1"), rows.events.map(eventTrack));
group("Caption", said(""), rows.caption.some((c) => c) ? [captionTrack()] : []);
group("Scene", said(""), rows.scene.length ? [sceneTrack()] : [], () => legend(rows.scene.map((s, k) => [s.name, listColour(k)])));
group("Ego motion", said(truth.motion.length ? "estimate / dashed: ground truth" : "estimate"), rows.motion.map(motionTrack));
group("Gates", "how much the answer rests on each modality; hatched: missing", rows.modalities.map(gateTrack));
group("Quality", "1 is good; underlined where something lowers it", rows.modalities.map(qualityTrack));
group("Tokens", "", rows.modalities.length ? [tokensTrack()] : [], modalityLegend);
group("Time", rows.measured ? "red cap: deadline missed" : "", [
  ...(rows.measured || rows.stages.length ? [latencyTrack()] : []),
  ...(rows.wait.some((w) => w !== null) ? [waitTrack()] : []),
], () => (rows.stages.length ? legend(rows.stages.map((s, k) => [s.name, listColour(k)])) : null));
group("Topics", "samples used per tick; marks: what was not", rows.topics.map(topicTrack), markLegend);
