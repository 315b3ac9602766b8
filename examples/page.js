// Starts the loads of examples/loads.py one after the other, and shows what they have measured.

const MAX_WAITING = 10;
const POLL = 100; // ms between two looks at the line

const $ = (id) => document.getElementById(id);
const post = (path) => ask(path, { method: "POST" });
const count = (number) => (number == null ? "–" : Math.round(number).toLocaleString("en"));
const ms = (number) =>
  number == null ? "–" : `${number < 10 ? number.toFixed(2) : count(number)} ms`;
const share = (load) => load.opening / (load.opening + load.waiting + load.querying);
const percent = (part) => `${(100 * part).toFixed(part < 0.01 ? 1 : 0)} %`;
let facts;

async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The demo does not answer any more: start it again with `make demo`.");
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(`It was not measured: ${found.detail}.`);
  return found;
}

function say(text, kind = "") {
  $("sentence").textContent = text;
  $("sentence").className = kind;
}

/** Fill a table: a row is its name, how to show a load, and which loads are good or bad there. */
function fill(id, loads, rows) {
  $(id).replaceChildren(
    ...rows.map(([name, show, classes = []]) => {
      const row = document.createElement("tr");
      const head = Object.assign(document.createElement("th"), { scope: "row" });
      head.append(...[name].flat());
      row.append(head);
      loads.forEach((load, n) => {
        const cell = row.insertCell();
        cell.textContent = load ? show(load) : "…";
        if (load) cell.className = classes[n] ?? "";
      });
      return row;
    }),
  );
}

function swatch(kind) {
  return Object.assign(document.createElement("span"), { className: `swatch ${kind}` });
}

function compare(pooled, unpooled) {
  const loads = [pooled, unpooled];
  const failed = loads.some((load) => load?.failed);
  fill("comparison", loads, [
    ["connections opened", (load) => count(load.opened), ["good", "bad"]],
    ["open at once, at most", (load) => count(load.most)],
    [
      [swatch("opening"), "opening and closing"],
      (load) => `${ms(load.opening)}, ${percent(share(load))}`,
      ["good", "bad"],
    ],
    [[swatch("waiting"), "waiting for a connection"], (load) => ms(load.waiting)],
    [[swatch("querying"), "the query"], (load) => ms(load.querying)],
    ["whole request, p50", (load) => ms(load.p50)],
    ["whole request, p99", (load) => ms(load.p99)],
    ["requests a second", (load) => count(load.per_second)],
    ["requests answered", (load) => count(load.requests)],
    ...(failed ? [["failed", (load) => `${count(load.failed)} ${load.why.slice(0, 60)}`]] : []),
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
  if (pooled && unpooled) explain(unpooled);
}

function explain(unpooled) {
  const took = `${ms(unpooled.alone)} with nobody else about, ${ms(unpooled.opening)} among ${facts.clients}`;
  const why = $("why");
  if (facts.kind !== "SQLite") {
    why.textContent = `Opening is a network connection, a login and a process of the server's: ${took}.`;
    return;
  }
  why.textContent = `Opening a SQLite file is cheap: ${took}. Over HTTP, which takes time of its own, the two ways may look alike; with SQLite it is the line and the overload below that count. A database server wants a network connection, a login and a process each time: `;
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
    ["p50 of those served", (load) => ms(load.p50), ["bad", "good"]],
    ["p99 of those served", (load) => ms(load.p99), ["bad", "good"]],
    [`served within ${facts.patience} ms`, (load) => count(load.in_time), ["bad", "good"]],
  ]);
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

  say("Measuring: the line…");
  await watchLine(1.5);

  say("Measuring: overload…");
  const free = await post("loads/overload");
  showOverload(free);
  const limited = await post(`loads/overload?max_waiting=${MAX_WAITING}`);
  showOverload(free, limited);
  $("useful").textContent = `Without a limit everybody waits for those before, longer and longer, and whoever has lost patience meanwhile is served for nothing. With max_waiting=${MAX_WAITING}, ${count(limited.refused)} were told at once to come again, and the others were served quickly.`;

  say(
    `The pool opened ${count(pooled.opened)} connections for ${count(pooled.requests)} requests. ` +
      `Without it ${count(unpooled.opened)} were opened, ${percent(share(unpooled))} of each request. ` +
      `In overload max_waiting=${MAX_WAITING} kept the p99 at ${ms(limited.p99)}; without, it was ${ms(free.p99)}.`,
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
