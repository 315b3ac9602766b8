// Asks for the numbers once a second while the page is seen, and shows them. Text goes in as text.

const EVERY = 1000; // ms
const SHOWN = 300; // s
const LETTERS = { leased: "L", idle: "I", connecting: "C", recycling: "R", closing: "X", free: "" };
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
let samples = [];
let chosen = "";
let timer = null;
let asking = null;
let paused = false;

// -- asking ---------------------------------------------------------------------------------------

async function ask() {
  const url = new URL("state", import.meta.url);
  if (chosen) url.searchParams.set("pool", chosen);
  if (samples.length) url.searchParams.set("after", samples.at(-1)[0]);
  asking = new AbortController();
  try {
    const limit = AbortSignal.any([asking.signal, AbortSignal.timeout(10 * EVERY)]);
    const answer = await fetch(url, { signal: limit, cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    if (error.name !== "AbortError") judge("bad", `No numbers: ${error.message}`);
  }
  asking = null;
  plan(EVERY);
}

function plan(delay) {
  clearTimeout(timer);
  timer = paused || document.hidden ? null : setTimeout(ask, delay);
}

document.addEventListener("visibilitychange", () => {
  if (!asking) plan(0);
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Go on" : "Pause";
  if (!asking) plan(0);
});
$("pool").addEventListener("change", () => {
  chosen = $("pool").value;
  samples = [];
  asking?.abort();
  if (!asking) plan(0);
});

// -- showing --------------------------------------------------------------------------------------

function show(state) {
  if (chosen && state.pool !== chosen) return; // asked before another was chosen
  document.title = `${state.name}: ${state.sentence}`;
  $("name").textContent = state.name;
  judge(state.level, state.sentence);
  showChoice(state);
  showSlots(state.slots);
  $("waiting").textContent = state.waiting;
  fit($("queue"), state.queue, "li", (item, { label, seconds }) => {
    write(item, `${label}, ${time(seconds)}`);
  });
  samples = [...samples, ...state.samples].filter(([at]) => at > state.now - SHOWN && at <= state.now);
  showCharts(state.now);
  showLeases(state.leases);
  showTable($("settings"), state.settings);
  showTable($("counters"), state.counters);
}

function judge(level, sentence) {
  $("sentence").className = level;
  write($("sentence"), sentence);
}

function showChoice({ pools, pool }) {
  $("choose").hidden = pools.length < 2;
  fit($("pool"), pools, "option", (option, name) => {
    option.value = name;
    write(option, name);
  });
  $("pool").value = pool;
}

function showSlots(slots) {
  fit($("slots"), slots, "button", (square, { state, seconds, label }, n) => {
    square.type = "button";
    square.className = `slot ${state}`;
    square.dataset.age = seconds === null || seconds < 1 ? 0 : seconds < 10 ? 1 : 2;
    const words = [`Slot ${n + 1}: ${state}`, seconds === null ? "" : time(seconds), label];
    square.title = words.filter(Boolean).join(", ");
    square.setAttribute("aria-label", square.title);
    write(square, LETTERS[state] ?? "");
  });
}

$("slots").addEventListener("click", (event) => {
  const n = [...$("slots").children].indexOf(event.target.closest("button")) + 1;
  const lease = document.querySelector(`details[data-slot="${n}"]`);
  if (lease) {
    lease.open = true;
    lease.firstChild.focus();
  }
});

function showLeases(leases) {
  const there = new Map([...$("leases").children].map((one) => [one.dataset.key, one]));
  const wanted = leases.map((lease) => {
    const one = there.get(lease.key) ?? makeLease(lease);
    write(one.querySelector("span"), time(lease.seconds));
    return one;
  });
  const kept = new Set(wanted);
  for (const one of there.values()) if (!kept.has(one)) one.remove();
  wanted.forEach((one, n) => {
    if ($("leases").children[n] !== one) $("leases").insertBefore(one, $("leases").children[n]);
  });
}

function makeLease({ key, slot, label, task, place, stack }) {
  const made = document.createElement("details");
  made.dataset.key = key;
  made.dataset.slot = slot;
  const summary = made.appendChild(document.createElement("summary"));
  summary.appendChild(document.createElement("b")).textContent = label;
  summary.appendChild(document.createElement("span"));
  const text = made.appendChild(document.createElement("pre"));
  text.className = "stack";
  text.tabIndex = 0; // it scrolls
  text.textContent = [`slot ${slot}, ${task}`, ...(stack.length ? stack : [place, "(set leak_after to note stacks)"])].join("\n");
  return made;
}

function showTable(list, entries) {
  const flat = Object.entries(entries).flatMap(([name, value]) => [
    ["dt", name],
    ["dd", typeof value === "number" ? +value.toFixed(3) : value ?? "none"],
  ]);
  flat.forEach(([kind, text], n) => {
    const old = list.children[n];
    if (old?.localName === kind) return write(old, text);
    const made = document.createElement(kind);
    write(made, text);
    if (old) old.replaceWith(made);
    else list.append(made);
  });
  while (list.children.length > flat.length) list.lastChild.remove();
}

// As many children as there are things, each brought up to date: what has the focus keeps it.
function fit(parent, things, kind, update) {
  while (parent.children.length > things.length) parent.lastChild.remove();
  things.forEach((thing, n) => {
    update(parent.children[n] ?? parent.appendChild(document.createElement(kind)), thing, n);
  });
}

function write(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function time(seconds) {
  if (seconds < 0.1) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

// -- charts ---------------------------------------------------------------------------------------

function showCharts(now) {
  const last = samples.at(-1);
  if (last) {
    const [, leased, idle, , p50, p99] = last;
    write($("leased"), leased);
    write($("idle"), idle);
    write($("p50"), p50 === null ? "–" : time(p50));
    write($("p99"), p99 === null ? "–" : time(p99));
  }
  draw($("waits"), now, [[4, "p50"], [5, "p99"]], 0.001, time);
  draw($("sizes"), now, [[1, "leased-line"], [2, "idle-line"]], 1, String);
}

addEventListener("resize", () => {
  if (samples.length) showCharts(samples.at(-1)[0]);
});

function draw(svg, now, lines, least, words) {
  const width = svg.clientWidth || 600;
  const height = 120;
  const [top, foot] = [16, 104];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const most = Math.max(least, ...samples.flatMap((one) => lines.map(([n]) => one[n] ?? 0)));
  const x = (at) => width * (1 - (now - at) / SHOWN);
  const y = (value) => foot - ((foot - top) * value) / most;
  const parts = [
    node("line", { x1: 0, x2: width, y1: foot, y2: foot }),
    node("line", { x1: 0, x2: width, y1: top, y2: top }),
    node("text", { x: 2, y: top - 4 }, words(most)),
    node("text", { x: 2, y: height - 2 }, "5 min ago"),
    node("text", { x: width - 2, y: height - 2, "text-anchor": "end" }, "now"),
  ];
  for (const [n, kind] of lines) {
    for (const run of runs(n)) {
      const points = run.map((one) => `${x(one[0]).toFixed(1)},${y(one[n]).toFixed(1)}`);
      if (points.length === 1) points.push(points[0]); // a dot
      parts.push(node("polyline", { class: kind, points: points.join(" ") }));
    }
  }
  svg.replaceChildren(...parts);
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

ask();
