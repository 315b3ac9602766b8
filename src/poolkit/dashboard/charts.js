// Draws samples as lines over five minutes, and says what they were where the pointer is.

export const SHOWN = 300; // s
const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, TOP, FOOT] = [120, 16, 104];

let samples = [];
let now = 0;
let at = null; // the time that is pointed at, the same in all charts
const charts = [];

// A chart of some columns of the samples: [number, class, name]. `least`: what the scale has at least.
export function chart(svg, lines, least, words) {
  const one = { svg, lines, least, words, label: svg.getAttribute("aria-label") };
  charts.push(one);
  const width = () => svg.clientWidth || 600;
  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    point(now - SHOWN * (1 - x / width()));
  });
  for (const kind of ["pointerleave", "blur"]) svg.addEventListener(kind, () => point(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !samples.length) return;
    const n = at === null ? samples.length : samples.indexOf(nearest());
    point(samples[Math.max(0, Math.min(samples.length - 1, n + step))][0]);
    event.preventDefault();
  });
}

export function drawAll(given, time) {
  [samples, now] = [given, time];
  charts.forEach(draw);
}

addEventListener("resize", () => charts.forEach(draw));

function point(time) {
  at = time;
  charts.forEach(draw);
}

function nearest() {
  return samples.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
}

function draw({ svg, lines, least, words, label }) {
  const width = svg.clientWidth || 600;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  // The scale of whole numbers has a whole number in its middle, too.
  let most = Math.max(least, ...samples.flatMap((one) => lines.map(([n]) => one[n] ?? 0)));
  if (least > 1) most = 2 * Math.ceil(most / 2);
  const x = (time) => width * (1 - (now - time) / SHOWN);
  const y = (value) => FOOT - ((FOOT - TOP) * value) / most;
  const parts = [0, 0.5, 1].map((share) => {
    const height = y(most * share);
    return node("line", { x1: 0, x2: width, y1: height, y2: height });
  });
  for (const [n, kind] of lines) {
    for (const run of runs(n)) {
      const points = run.map((one) => `${x(one[0]).toFixed(1)},${y(one[n]).toFixed(1)}`);
      if (points.length === 1) points.push(points[0]); // a dot
      parts.push(node("polyline", { class: kind, points: points.join(" ") }));
    }
  }
  parts.push(
    node("text", { x: 2, y: TOP - 4 }, words(most)),
    node("text", { x: 2, y: y(most / 2) - 3, class: "middle" }, words(most / 2)),
    node("text", { x: 2, y: HEIGHT - 2 }, "5 min ago"),
    node("text", { x: width - 2, y: HEIGHT - 2, "text-anchor": "end" }, "now"),
  );
  const reading = at !== null && samples.length ? read(nearest(), lines, words) : "";
  if (reading) {
    const place = x(nearest()[0]);
    const anchor = place > width / 2 ? "end" : "start";
    const shift = anchor === "end" ? -6 : 6;
    parts.push(
      node("line", { class: "cursor", x1: place, x2: place, y1: TOP, y2: FOOT }),
      node("text", { class: "reading", x: place + shift, y: TOP + 12, "text-anchor": anchor }, reading),
    );
  }
  svg.setAttribute("aria-label", reading ? `${label}: ${reading}` : label);
  svg.replaceChildren(...parts);
}

function read(sample, lines, words) {
  const values = lines.map(([n, , name]) => `${name} ${sample[n] === null ? "–" : words(sample[n])}`);
  return `${Math.max(0, Math.round(now - sample[0]))} s ago: ${values.join(", ")}`;
}

// A line is broken where nobody looked, or where there was nothing to measure.
function runs(n) {
  const found = [];
  let before = null;
  for (const one of samples) {
    if (one[n] !== null) {
      if (before === null || one[0] - before > 5) found.push([]);
      found.at(-1).push(one);
      before = one[0];
    } else before = null;
  }
  return found;
}

function node(kind, attributes, text = "") {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}
