
// ---- Inspector: one tick in words and pictures ----

const inspector = document.getElementById("inspector");
const MAX_PICTURE_DISTANCE_MS = 1500;

/// The camera picture nearest to run time x, if there is one near enough.
function pictureAt(x) {
  const thumb = data.thumbs[nearestIndex(data.thumbs, x)];
  return thumb && Math.abs(thumb.x - x) <= MAX_PICTURE_DISTANCE_MS ? thumb : null;
}

function image(thumb) {
  const element = make("img");
  element.src = thumb.uri;
  element.alt = `Camera at ${runTime(thumb.x)}`;
  return element;
}

function nowPart(i, held, actions) {
  const picture = pictureAt(rows.x[i]);
  const when = make("div", "when", make("b", "", tickName(i)), make("span", "", runTime(rows.x[i], 1)));
  if (held) {
    const release = make("button", "hold", "Release");
    release.type = "button";
    release.addEventListener("click", actions.release);
    when.append(release);
  }
  const expand = make("button", "expand", inspector.classList.contains("open") ? "Less" : "More");
  expand.type = "button";
  expand.addEventListener("click", () => {
    expand.textContent = inspector.classList.toggle("open") ? "Less" : "More";
  });
  when.append(expand);
  const now = make("div", picture ? "now" : "now bare", when);
  if (picture) {
    const camera = data.cameras[picture.camera] || "camera";
    now.append(make("figure", "", image(picture), make("figcaption", "", `${camera}, ${apart(picture.x - rows.x[i])}`)));
  }
  if (rows.caption[i]) {
    const [caption, known] = rows.caption[i];
    const letters = [...data.captions[caption].text];
    now.append(make("p", "said", letters.slice(0, known).join(""), make("i", "", letters.slice(known).join(""))));
  }
  return now;
}

function factsPart(i) {
  const facts = make("dl");
  const fact = (name, text, className) => {
    if (text) facts.append(make("dt", "", name), make("dd", className ?? "", text));
  };
  fact("Time", timeOfDay(i));
  const before = breaks.get(i);
  const epochReason = texts[rows.epoch_reason[i]];
  if (rows.epoch[i] > 1) fact("Epoch", epochReason ? `${rows.epoch[i]}: ${epochReason}` : String(rows.epoch[i]));
  fact("Jump", before ? `stamped ${apart(before.jump_ms)} than the tick before` : "");
  const plan = texts[rows.plan[i]];
  const reason = texts[rows.plan_reason[i]];
  fact("Plan", reason ? `${plan}: ${reason}` : plan);
  const wait = rows.wait[i] === null ? "" : `after ${millis(rows.wait[i])}`;
  fact("Closed", [texts[rows.close_reason[i]], wait].filter(Boolean).join(", "));
  if (rows.measured) fact("Deadline", rows.misses[i] ? "missed" : "met");
  for (const modality of rows.modalities) {
    if (modality.reasons[i]) fact(modality.name, texts[modality.reasons[i]]);
  }
  fact("Digest", rows.digest[i], "code");
  return facts;
}

function momentsPart(i, actions) {
  const moments = rows.nearest[i].map(([row, tick, similarity]) => {
    const button = make("button", "near");
    button.type = "button";
    button.disabled = row === null;
    const picture = row === null ? null : pictureAt(rows.x[row]);
    const meter = make("i");
    meter.style.width = `${Math.min(Math.max(similarity ?? 0, 0), 1) * 100}%`;
    const lap = row === null || rows.epoch[row] === rows.epoch[i] ? "" : `, epoch ${rows.epoch[row]}`;
    const where = row === null ? "not in this log" : apart(rows.x[row] - rows.x[i]);
    button.append(
      picture ? image(picture) : make("span", "none"),
      make("span", "", `Tick ${tick}${lap}`, make("br"), make("small", "", `${fixed(similarity, 3)} · ${where}`), make("span", "meter", meter)),
    );
    if (row !== null) button.addEventListener("click", () => actions.hold(row));
    return button;
  });
  return moments.length ? [make("h4", "", "Nearest earlier moments"), ...moments] : [];
}

function topicsPart(i) {
  if (!rows.topics.length) return [];
  const table = make("table", "used");
  for (const topic of rows.topics) {
    const missing = isMissing(topic)(i);
    const name = make("td", "", topic.name);
    name.title = topic.name;
    const age = missing ? "missing" : topic.used[i] ? `${millis(topic.age[i])} old` : "";
    table.append(make("tr", "", name, make("td", "", topic.used[i] ? `${topic.used[i]} ×` : "–"), make("td", "", age)));
  }
  return [make("h4", "", "Samples used"), table];
}

/// Shows row i. `held`: it stays until released.
function inspect(i, held, actions) {
  const more = make("div", "more", ...momentsPart(i, actions), make("h4", "", "This tick"), factsPart(i), ...topicsPart(i));
  inspector.replaceChildren(nowPart(i, held, actions), more);
}
