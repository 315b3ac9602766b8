// Asks for the numbers once a second while the page is seen, and shows them. Text goes in as text.

import { SHOWN, chart, drawAll } from "./charts.js";

const EVERY = 1000; // ms
const OLD = 10; // s: what another process has left
// Of each process, and of all; the first column is its button.
const COLUMNS = [null, (one) => one.leased, (one) => one.idle, (one) => one.waiting, (one) => time(one.oldest_wait), (one) => one.capacity];
const LETTERS = { leased: "L", idle: "I", connecting: "C", recycling: "R", closing: "X", free: "" };

const $ = (id) => document.getElementById(id);
let samples = [];
// What is looked at: in the address, so that it is there again when the page is loaded again.
const address = new URL(location).searchParams;
let chosen = address.get("pool") ?? "";
let worker = address.get("worker") ?? "";
let told = ""; // the process that the samples are of
let shownAt = null; // ms
let titled = document.title;
let timer = null;
let asking = null;
let paused = false;

// -- asking ---------------------------------------------------------------------------------------

async function ask() {
  const url = new URL("state", import.meta.url);
  if (chosen) url.searchParams.set("pool", chosen);
  if (worker) url.searchParams.set("worker", worker);
  if (samples.length) url.searchParams.set("after", samples.at(-1)[0]);
  asking = new AbortController();
  try {
    const limit = AbortSignal.any([asking.signal, AbortSignal.timeout(5 * EVERY)]);
    const answer = await fetch(url, { signal: limit, cache: "no-store" });
    const type = answer.headers.get("content-type") ?? "";
    if (!type.startsWith("application/json")) throw new Error(`the server answers ${answer.status}`);
    const state = await answer.json();
    if (answer.status === 404 && state.error) lose(state.error);
    else if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    else show(state);
  } catch (error) {
    if (!asking.signal.aborted) growOld(`No numbers: ${error.message}`);
  }
  const delay = asking.signal.aborted ? 0 : EVERY;
  asking = null;
  plan(delay);
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
  entitle();
  if (!asking) plan(0);
});
$("pool").addEventListener("change", () => lookAt($("pool").value, worker));
$("rows").addEventListener("click", (event) => {
  const row = event.target.closest("button")?.closest("tr");
  if (row) lookAt(chosen, row.dataset.worker);
});

function lookAt(pool, process) {
  remember(pool, process);
  samples = [];
  asking?.abort();
  if (!asking) plan(0);
}

function remember(pool, process) {
  [chosen, worker] = [pool, process];
  const query = new URLSearchParams();
  if (pool) query.set("pool", pool);
  if (process) query.set("worker", process);
  history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}`);
}

// -- showing --------------------------------------------------------------------------------------

function show(state) {
  if (chosen && state.pool !== chosen) return; // asked before another was chosen
  if (worker && state.worker !== worker) return;
  const source = state.worker || String(state.process.pid);
  if (source !== told && samples.length) [samples, state.samples] = [[], []]; // next time, all of them
  told = source;
  showChoice(state);
  showWorkers(state);
  // Whichever process answers the next time, it shows the same one.
  if (state.worker && !worker && state.workers.length > 1) remember(chosen, state.worker);
  const shown = state.workers.find((one) => one.worker === state.worker) ?? state.process;
  write($("process"), `process ${shown.pid} on ${shown.host}`);
  if (state.age > OLD) return growOld(`Process ${shown.pid} has told nothing for ${time(state.age)}`);
  if (state.is_asked) {
    document.body.classList.add("old");
    return judge("busy", `Process ${shown.pid} was asked for its numbers`);
  }
  shownAt = performance.now();
  document.body.classList.remove("old");
  titled = `${state.name}: ${state.sentence}`;
  entitle();
  write($("name"), state.name);
  judge(state.level, state.sentence);
  say("advice", state.advice);
  showSlots(state.slots);
  write($("capacity"), state.capacity);
  say("more-slots", more(state.slots, state.capacity));
  write($("waiting"), state.waiting);
  say("more-queue", more(state.queue, state.waiting));
  fit($("queue"), state.queue, "li", (item, { label, seconds }) => {
    write(item, `${label}, ${time(seconds)}`);
  });
  samples = [...samples, ...state.samples].filter(([at]) => at > state.now - SHOWN && at <= state.now);
  showCharts(state.now);
  showLeases(state.leases);
  write($("held"), state.leased);
  say("more-leases", more(state.leases, state.leased));
  showTable($("settings"), state.settings);
  showTable($("counters"), state.counters);
}

// What was asked for is no more: ask for what there is.
function lose(why) {
  growOld(why);
  if (chosen || worker) remember(chosen, "");
  if (why.includes("pool")) remember("", "");
  samples = [];
}

function growOld(why) {
  document.body.classList.add("old");
  const age = shownAt === null ? "" : ` for ${time((performance.now() - shownAt) / 1000)}`;
  document.title = `No answer${age}: ${titled}`;
  judge("bad", why);
}

function entitle() {
  document.title = paused ? `Paused: ${titled}` : titled;
}

function more(list, number) {
  return number > list.length ? `and ${number - list.length} more` : "";
}

function say(id, text) {
  $(id).hidden = !text;
  write($(id), text ?? "");
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

function showWorkers({ workers, worker: shown, trouble }) {
  $("workers").hidden = workers.length < 2 && !trouble;
  say("trouble", trouble && `Nothing is exchanged with other processes: ${trouble}`);
  write($("processes"), workers.length);
  const hosts = new Set(workers.map((one) => one.host)).size;
  fit($("rows"), workers, "tr", (row, { worker: name, pid: number, host, age, stats }) => {
    row.dataset.worker = name;
    row.className = age > OLD ? "old" : "";
    if (!row.children.length) row.append(...COLUMNS.map(() => document.createElement("td")));
    const button = row.firstChild.firstChild ?? row.firstChild.appendChild(document.createElement("button"));
    button.type = "button";
    button.setAttribute("aria-pressed", String(name === shown));
    const late = age > OLD ? `, silent for ${time(age)}` : "";
    write(button, `${number}${hosts > 1 ? ` on ${host}` : ""}${late}`);
    COLUMNS.forEach((column, n) => column && write(row.children[n], column(stats)));
  });
  // Of one that is silent nobody knows.
  const known = workers.filter((one) => one.age <= OLD).map((one) => one.stats);
  const total = { oldest_wait: Math.max(0, ...known.map((one) => one.oldest_wait)) };
  for (const name of ["leased", "idle", "waiting", "capacity"]) {
    total[name] = known.reduce((sum, one) => sum + one[name], 0);
  }
  fit($("total"), COLUMNS, "td", (cell, column) => write(cell, column ? column(total) : "all"));
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
    const said = one.querySelector("code");
    said.hidden = !lease.statement;
    write(said, lease.statement);
    return one;
  });
  const kept = new Set(wanted);
  for (const one of there.values()) if (!kept.has(one)) one.remove();
  wanted.forEach((one, n) => {
    if ($("leases").children[n] !== one) $("leases").insertBefore(one, $("leases").children[n]);
  });
}

function makeLease({ key, slot, label, task, place, stack, server_pid }) {
  const made = document.createElement("details");
  made.dataset.key = key;
  made.dataset.slot = slot;
  const summary = made.appendChild(document.createElement("summary"));
  summary.appendChild(document.createElement("b")).textContent = label;
  summary.appendChild(document.createElement("span"));
  summary.appendChild(document.createElement("code"));
  const text = made.appendChild(document.createElement("pre"));
  text.className = "stack";
  text.tabIndex = 0; // it scrolls
  const server = server_pid === null ? "" : `, server process ${server_pid}`;
  text.textContent = [`slot ${slot}, ${task}${server}`, ...(stack.length ? stack : [place, "(set leak_after to note stacks)"])].join("\n");
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
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

chart($("waits"), [[4, "p50", "p50"], [5, "p99", "p99"]], 0.001, time);
chart($("sizes"), [[1, "leased-line", "leased"], [2, "idle-line", "idle"]], 2, String);

function showCharts(now) {
  const last = samples.at(-1);
  if (last) {
    const [, leased, idle, , p50, p99] = last;
    write($("leased"), leased);
    write($("idle"), idle);
    write($("p50"), p50 === null ? "–" : time(p50));
    write($("p99"), p99 === null ? "–" : time(p99));
  }
  drawAll(samples, now);
}

ask();
