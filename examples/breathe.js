// Loads the example from this browser, and draws how long the two routes take to answer.

const SECONDS = 10;
const LANES = 3; // of each kind: a browser opens six connections to a server
const PAUSE = 30; // ms between two requests, or only the server's speed is measured
const STEP = 250; // ms for each point of the chart
const ROUTES = { pooled: "items", unpooled: "unpooled/items" };
const COLOURS = { pooled: "idle-line", unpooled: "p99" };

const $ = (id) => document.getElementById(id);
let answers = [];
let began = 0;

async function lane(kind, end) {
  while (performance.now() < end) {
    const sent = performance.now();
    // A name of its own, so that `performance` tells which entry is whose.
    const answer = await fetch(`${ROUTES[kind]}?${answers.length}-${sent}`, { cache: "no-store" });
    await answer.text();
    const timing = answer.headers.get("Server-Timing") ?? "";
    const [waited, held] = [...timing.matchAll(/dur=([\d.]+)/g)].map((one) => Number(one[1]));
    answers.push({ kind, at: sent - began, took: performance.now() - sent, waited, held });
    await new Promise((go) => setTimeout(go, PAUSE));
  }
}

$("load").addEventListener("click", async () => {
  $("load").disabled = true;
  answers = [];
  began = performance.now();
  const drawing = setInterval(draw, STEP);
  const lanes = Object.keys(ROUTES).flatMap((kind) =>
    Array.from({ length: LANES }, () => lane(kind, began + SECONDS * 1000)),
  );
  await Promise.allSettled(lanes);
  clearInterval(drawing);
  draw();
  $("load").disabled = false;
});

$("visitors").addEventListener("click", () => fetch("breathe", { method: "POST" }));

function median(numbers) {
  return numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

function draw() {
  const svg = $("chart");
  const [width, height] = [svg.clientWidth, 120];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const lines = Object.keys(ROUTES).map((kind) => {
    const steps = new Map();
    for (const one of answers.filter((one) => one.kind === kind)) {
      const step = Math.floor(one.at / STEP);
      steps.set(step, [...(steps.get(step) ?? []), one.took]);
    }
    return [kind, [...steps].sort(([a], [b]) => a - b).map(([step, took]) => [step, median(took)])];
  });
  const most = Math.max(1, ...lines.flatMap(([, points]) => points.map(([, took]) => took)));
  for (const [kind, points] of lines) {
    const line = document.createElementNS(svg.namespaceURI, "polyline");
    const x = (step) => (width * step * STEP) / (SECONDS * 1000);
    const y = (took) => height - 4 - ((height - 8) * took) / most;
    line.setAttribute("class", COLOURS[kind]);
    line.setAttribute("points", points.map(([step, took]) => `${x(step)},${y(took)}`).join(" "));
    svg.append(line);
    const all = answers.filter((one) => one.kind === kind).map((one) => one.took);
    if (all.length) $(kind).textContent = `${median(all).toFixed(1)} ms`;
  }
  const pooled = answers.filter((one) => one.kind === "pooled" && one.held !== undefined);
  if (pooled.length) {
    $("waited").textContent = `${median(pooled.map((one) => one.waited)).toFixed(1)} ms`;
    $("held").textContent = `${median(pooled.map((one) => one.held)).toFixed(1)} ms`;
  }
  $("done").textContent = answers.length;
}
