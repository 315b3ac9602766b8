// Starts the loads of examples/loads.py one after the other, and shows what they have measured.

const MAX_WAITING = 10;
const POLL = 100; // ms between two looks at the line
const BUSY = 300; // ms to wait while another page measures, or this one before it was reloaded

const $ = (id) => document.getElementById(id);
const post = (path) => ask(path, { method: "POST" });
const count = (number) => (number == null ? "–" : Math.round(number).toLocaleString("en"));
const ms = (number) =>
  number == null ? "–" : `${number < 10 ? number.toFixed(2) : count(number)} ms`;
const share = (load) => load.opening / (load.opening + load.waiting + load.querying);
const percent = (part) =>
  Number.isFinite(part) ? `${(100 * part).toFixed(part < 0.01 ? 1 : 0)} %` : "–";
let facts;

async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The demo does not answer any more: start it again with `make demo`.");
  });
  if (answer.status === 409) {
    await new Promise((go) => setTimeout(go, BUSY));
    return ask(path, options);
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(`It was not measured: ${found.detail}.`);
  return found;
}

function say(text, kind = "") {
  $("sentence").textContent = text;
  $("sentence").className = kind;
}

/** Fill a table of loads: of each row its name, what it shows, and what is better if it is less. */
function fill(id, loads, rows) {
  $(id).replaceChildren(
    ...rows.map(([name, show, cost]) => {
      const row = document.createElement("tr");
      const head = Object.assign(document.createElement("th"), { scope: "row" });
      head.append(...[name].flat());
      row.append(head);
      const least = cost && loads.every(Boolean) ? Math.min(...loads.map(cost)) : null;
      for (const load of loads) {
        const cell = row.insertCell();
        cell.textContent = load ? show(load) : "…";
        if (least !== null) cell.className = cost(load) > least ? "bad" : "good";
      }
      return row;
    }),
  );
}

function swatch(kind) {
  return Object.assign(document.createElement("span"), { className: `swatch ${kind}` });
}

function compare(pooled, unpooled) {
  const loads = [pooled, unpooled];
  fill("comparison", loads, [
    ["connections opened", (load) => count(load.opened), (load) => load.opened],
    ["in use at once, at most", (load) => count(load.most)],
    [
      [swatch("opening"), "opening and closing"],
      (load) => `${ms(load.opening)}, ${percent(share(load))}`,
      (load) => load.opening,
    ],
    [[swatch("waiting"), "waiting for a connection"], (load) => ms(load.waiting)],
    [[swatch("querying"), "the query"], (load) => ms(load.querying)],
    ["whole request, p50", (load) => ms(load.p50)],
    ["whole request, p99", (load) => ms(load.p99)],
    ["requests a second", (load) => count(load.per_second)],
    [`requests answered, in ${facts.longest} s at most`, (load) => count(load.requests)],
    ["requests failed", (load) => count(load.failed), (load) => load.failed],
  ]);
  const parts = ["opening", "waiting", "querying"];
  const sum = (load) => parts.reduce((all, part) => all + load[part], 0);
  const longest = Math.max(...loads.filter(Boolean).map(sum));
  for (const [id, load] of [["pooled-bar", pooled], ["unpooled-bar", unpooled]]) {
    $(id).replaceChildren(
      ...parts.map((part) => {
        const piece = Object.assign(document.createElement("i"), { className: part });
        piece.style.width = load ? `${(100 * load[part]) / longest}%` : 0;
        return piece;
      }),
    );
  }
  if (pooled && unpooled) explain(pooled, unpooled);
}

function explain(pooled, unpooled) {
  const slower =
    unpooled.querying > pooled.querying
      ? " The query takes longer, too: a new connection has cached nothing, and more of them run at once."
      : "";
  const took = `${ms(unpooled.alone)} with nobody else about, ${ms(unpooled.opening)} among ${facts.clients}`;
  const failed = unpooled.failed ? ` Without the pool ${count(unpooled.failed)} failed: ${unpooled.why}.` : "";
  const why = $("why");
  if (facts.kind !== "SQLite") {
    why.textContent = `Opening is a network connection, a login and a process of the server's: ${took}.${slower}${failed}`;
    return;
  }
  why.textContent = `Opening a SQLite file is cheap: ${took}.${slower} Over HTTP, which takes time of its own, the two ways may look alike; with SQLite it is the line and the overload below that count. A database server wants a network connection, a login and a process each time: `;
  why.append(
    Object.assign(document.createElement("code"), {
      textContent: "make demo DATABASE_URL=postgresql://user:password@host/database",
    }),
    " measures that.",
  );
  if (facts.tables) {
    const link = document.createElement("a");
    Object.assign(link, { href: "performance.md", textContent: "the project's tables" });
    const { pooled, unpooled } = facts.tables;
    why.append(
      " With FastAPI, PostgreSQL on the same machine and 10 clients, ",
      link,
      ` have a p50 of ${unpooled} ms with a connection for each request, and of ${pooled} ms with poolkit.`,
    );
  }
}

function showLine(line) {
  if (line.holding.length) {
    const squares = (people, kind) =>
      people.map(([visitor, waited], n) => {
        const square = document.createElement("span");
        square.className = `slot ${kind}`;
        square.textContent = `${visitor}`;
        if (kind === "free" && n === 0) {
          square.classList.add("next");
          square.textContent = `${visitor}: next, after ${Math.round(waited)} ms`;
        }
        return square;
      });
    $("holding").replaceChildren(...squares(line.holding, "leased"));
    $("waiting").replaceChildren(...squares(line.waiting, "free"));
  }
  const rows = [
    ["served", count(line.served)],
    ["in line at once, at most", count(line.most)],
    ["longest wait", ms(line.longest)],
    ["served out of turn", count(line.out_of_turn)],
  ];
  $("line").replaceChildren(
    ...rows.flatMap(([name, value]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    ]),
  );
}

async function watchLine(seconds) {
  const done = post(`loads/line?seconds=${seconds}`);
  let over = false;
  const looking = (async () => {
    while (!over) {
      await new Promise((go) => setTimeout(go, POLL));
      if (!over) showLine(await ask("loads/line"));
    }
  })();
  try {
    const line = await done;
    over = true;
    await looking;
    showLine(line);
  } finally {
    over = true;
    await looking.catch(() => {});
  }
}

function showOverload(free, limited) {
  fill("overload", [free, limited], [
    ["came", (load) => count(load.came)],
    ["accepted", (load) => count(load.accepted)],
    ["refused at once", (load) => count(load.refused)],
    ["longest line", (load) => count(load.longest_line)],
    ["p50 of those served", (load) => ms(load.p50), (load) => load.p50],
    ["p99 of those served", (load) => ms(load.p99), (load) => load.p99],
    [`served within ${facts.patience} ms`, (load) => count(load.in_time), (load) => -load.in_time],
  ]);
}

/** Say how long requests took, and how many were not answered: what can be compared at a glance. */
function sayTimes(pooled, unpooled) {
  const missing =
    unpooled.requests < pooled.requests
      ? `; only ${count(unpooled.requests)} of ${count(pooled.requests)} were answered in ${facts.longest} s`
      : "";
  return (
    `Through a pool of ${count(facts.size)} a request takes ${ms(pooled.p50)} (p50), ` +
    `with a connection opened for each ${ms(unpooled.p50)}, ` +
    `${percent(share(unpooled))} of it to open and close${missing}.`
  );
}

async function measure() {
  facts = await ask("loads");
  $("kind").textContent = `measured on ${facts.kind}`;
  $("limit").textContent = `max_waiting=${MAX_WAITING}`;
  for (const place of document.querySelectorAll("[data-fact]"))
    place.textContent = facts[place.dataset.fact];
  compare();
  showOverload();

  say("Measuring: the same load, through a pool and without…");
  const pooled = await post("loads/pooled");
  compare(pooled);
  const unpooled = await post("loads/unpooled");
  compare(pooled, unpooled);

  const times = sayTimes(pooled, unpooled);
  say(`${times} Measuring: the line…`);
  await watchLine(1.5);

  say(`${times} Measuring: overload…`);
  const free = await post("loads/overload");
  showOverload(free);
  const limited = await post(`loads/overload?max_waiting=${MAX_WAITING}`);
  showOverload(free, limited);
  $("useful").textContent = `Without a limit everybody waits for those before, longer and longer, and whoever has lost patience meanwhile is served for nothing: ${count(free.in_time)} of ${count(free.came)} were served within ${facts.patience} ms. With max_waiting=${MAX_WAITING}, ${count(limited.refused)} were told at once to come again, and ${count(limited.in_time)} were served within ${facts.patience} ms.`;

  say(
    `${times} In overload max_waiting=${MAX_WAITING} kept the p99 at ${ms(limited.p99)}; without, it was ${ms(free.p99)}.`,
    "good",
  );
}

/** Run something while no button can be pressed, and say what went wrong. */
async function run(work) {
  const buttons = [$("again"), $("longer")];
  for (const button of buttons) button.disabled = true;
  await work().catch((error) => say(error.message, "bad"));
  for (const button of buttons) button.disabled = false;
}

$("again").addEventListener("click", () => run(measure));
$("longer").addEventListener("click", () => run(() => watchLine(10)));
run(measure);
