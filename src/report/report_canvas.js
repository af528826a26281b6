
// ---- Drawing ----

// A narrower ribbon goes without its text.
const LEAST_LABEL_PX = 44;

/// What a track draws on: an SVG of `width` x `height` pixels and the plot element around it.
class Canvas {
  constructor(plot, height) {
    this.plot = plot;
    this.height = height;
    this.root = svg("svg", { height, "aria-hidden": "true" });
    plot.append(this.root);
  }

  clear(width) {
    this.width = width;
    this.root.setAttribute("width", width);
    this.root.replaceChildren();
    for (const ribbon of this.plot.querySelectorAll(".ribbon")) ribbon.remove();
  }

  px(x) {
    return ((x - view.a) / (view.b - view.a)) * this.width;
  }

  add(tag, attributes, text) {
    const element = svg(tag, attributes, text);
    this.root.append(element);
    return element;
  }

  line(y, className) {
    this.add("line", { x1: 0, x2: this.width, y1: y, y2: y, class: className });
  }

  box(a, b, top, bottom, className, colour) {
    const [from, to] = [Math.max(this.px(a), -2), Math.min(this.px(b), this.width + 2)];
    if (to < 0 || from > this.width) return;
    const style = colour ? `--c:${colour}` : "";
    this.add("rect", { x: from, width: Math.max(to - from, 1), y: top, height: Math.max(bottom - top, 0), class: className, style });
  }

  /// A filled staircase from y(base) to y(value) per row; nulls are gaps. `edge` draws its top as a line.
  steps(value, y, { base = () => 0, colour, edge = false, className = "area" }) {
    const [first, last] = visible();
    let fill = "";
    let top = "";
    let open = false;
    for (let i = first; i <= last; i++) {
      const v = value(i);
      if (v === null || v === undefined) {
        open = false;
        continue;
      }
      const [a, b] = [this.px(left[i]).toFixed(1), this.px(rows.x[i]).toFixed(1)];
      const [high, low] = [y(v).toFixed(1), y(base(i)).toFixed(1)];
      fill += `M${a} ${low}V${high}H${b}V${low}Z`;
      const joins = open && left[i] === rows.x[i - 1];
      top += joins ? `V${high}H${b}` : `M${a} ${high}H${b}`;
      open = true;
    }
    const style = `--c:${colour}`;
    if (fill && className) this.add("path", { d: fill, class: className, style });
    if (top && edge) this.add("path", { d: top, class: "edge", style });
  }

  ribbon(a, b, text, { colour, className = "", top = 0, bottom = 0, title = text }) {
    const [from, to] = [Math.max(this.px(a), 0), Math.min(this.px(b), this.width)];
    if (to - from < 0.5) return;
    const element = make("div", `ribbon ${className}`, make("span", "", to - from > LEAST_LABEL_PX ? text : ""));
    Object.assign(element.style, { left: `${from}px`, width: `${Math.max(to - from, 2)}px`, top: `${top}px`, bottom: `${bottom}px` });
    if (to - from < 14) element.style.padding = 0;
    if (colour) element.style.setProperty("--c", colour);
    element.title = title;
    this.plot.append(element);
  }

  missing(isMissing) {
    for (const span of spans((i) => (isMissing(i) ? 1 : null))) this.box(span.a, span.b, 0, this.height, "missing");
  }
}

const scale = (height, low, high, pad = 2) => (v) =>
  height - pad - ((Math.min(Math.max(v, low), high) - low) / (high - low || 1)) * (height - 2 * pad);
