// The page of the board: a table of runs, and the curves of those that are ticked. All text reaches the page as text, never as HTML.
"use strict";

const EVERY = 2000; // milliseconds between looks
const AT_ONCE = 20; // runs whose curves are shown
const FIRST = ["loss", "accuracy", "lr", "gradient_norm", "images/s", "data_wait", "memory_mb"]; // charts; others follow
const COLOURS = ["#3b82f6", "#f97316", "#10b981", "#ef4444", "#a855f7", "#a16207", "#ec4899", "#6b7280", "#84cc16", "#06b6d4"];

const fixed = (digits) => (value) => value.toFixed(digits);
const grouped = (value) => Math.round(value).toLocaleString("en");
const COLUMNS = [ // heading, value to sort by, text, whether it is words
  ["run", (run) => run.name, String, true],
  ["state", (run) => run.state, String, true],
  ["step", (run) => run.step, grouped],
  ["test", (run) => run.test_accuracy, fixed(4)],
  ["validation", (run) => run.best, fixed(4)],
  ["last", (run) => run.last, fixed(4)],
  ["seconds", (run) => run.seconds, fixed(1)],
  ["images/s", (run) => run.images_per_second, grouped],
  ["when", (run) => moment(run.when), (value) => local(value), true],
  ["report", (run) => (run.report ? 1 : null), () => "report", true],
  ["model", (run) => run.model, String, true],
  ["data", (run) => run.data, String, true],
  ["lr", (run) => run.lr, (value) => String(Number(value.toPrecision(4)))],
  ["optimizer", (run) => run.optimizer, String, true],
  ["on", (run) => (run.world_size > 1 ? `${run.world_size} x ${run.device}` : run.device), String, true],
  ["exit", (run) => run.exit_code, String],
  ["message", (run) => run.message, String, true],
];

const at = (id) => document.getElementById(id);
const ticked = new Map(); // name of a run -> its colour, in the order of ticking
const curves = new Map(); // name of a run -> {text, axis, state, value}
const rows = new Map(); // name of a run -> {line, text}: rows stay, so that what is clicked or focused does not go away in between
let runs = [], told = "", sorted = null, chosen = false;

function element(kind, text, ...classes) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

function moment(when) {
  const found = Date.parse(when.replace(/([+-]\d\d)(\d\d)$/, "$1:$2"));
  return Number.isNaN(found) ? null : found;
}

function local(value) {
  const two = (number) => String(number).padStart(2, "0");
  const t = new Date(value);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} ${two(t.getHours())}:${two(t.getMinutes())}`;
}

class Trouble extends Error {} // of the server: to be told in the page

async function fetched(address) {
  let answer, text;
  try {
    answer = await fetch(address);
    text = await answer.text();
  } catch {
    throw new Trouble("the board has ended; pipeline board starts it again");
  }
  if (!answer.ok) throw new Trouble(text);
  return text;
}

// The table

function matching() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = runs.filter((run) => {
    const text = [run.name, run.model, run.data, run.optimizer, run.device, run.message].join(" ").toLowerCase();
    return words.every((word) => (word.startsWith("state:") ? run.state.startsWith(word.slice(6)) : text.includes(word)));
  });
  if (!sorted) return found;
  const value = COLUMNS.find(([name]) => name === sorted.by)[1];
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const missing = (run) => (value(run) ?? "") === "";
  return found.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sorted.sign * order(value(a), value(b))));
}

function heading([name, , , words]) {
  const cell = element("th", undefined, ...(words ? ["left"] : []));
  const sign = sorted?.by === name ? sorted.sign : 0;
  const button = element("button", name + (sign > 0 ? " ▲" : sign < 0 ? " ▼" : ""));
  cell.setAttribute("aria-sort", sign > 0 ? "ascending" : sign < 0 ? "descending" : "none");
  button.addEventListener("click", () => {
    const first = words && name !== "when" ? 1 : -1;
    sorted = sign === 0 ? { by: name, sign: first } : sign === first ? { by: name, sign: -first } : null;
    showHeadings();
    showTable();
  });
  cell.append(button);
  return cell;
}

function row(run) {
  if (!rows.has(run.name)) rows.set(run.name, { line: element("tr"), text: "" });
  const kept = rows.get(run.name);
  const { line } = kept;
  const text = JSON.stringify(run);
  if (text !== kept.text) {
    kept.text = text;
    if (!line.firstChild) line.append(ticker(run));
    while (line.children.length > 1) line.lastChild.remove();
    line.append(...COLUMNS.slice(1).map((column) => cell(run, column)));
  }
  const box = line.querySelector("input");
  box.checked = ticked.has(run.name);
  box.style.accentColor = ticked.get(run.name) ?? "";
  return line;
}

function ticker(run) {
  const made = element("td", undefined, "left");
  const label = element("label");
  const box = element("input");
  box.type = "checkbox";
  box.addEventListener("change", () => tick(box.checked, run.name));
  label.append(box, ` ${run.name}`);
  label.title = run.path;
  made.append(label);
  return made;
}

function cell(run, [name, value, text, words]) {
  const found = value(run);
  const shown = (found ?? "") === "" ? "" : text(found);
  const made = element("td", undefined, ...(words ? ["left"] : []));
  if (name === "state") {
    made.append(element("span", shown, "state", ...(/^\w+$/.test(shown) ? [shown] : [])));
  } else if (name === "step" && run.state === "running" && run.steps) {
    const bar = element("progress");
    bar.max = run.steps;
    bar.value = run.step ?? 0;
    made.append(bar, ` ${grouped(run.step ?? 0)} / ${grouped(run.steps)}`);
  } else if (name === "report" && shown) {
    const link = element("a", shown);
    link.href = `files/${run.name.split("/").map(encodeURIComponent).join("/")}/report/index.html`;
    link.target = "_blank";
    link.rel = "noopener";
    made.append(link);
  } else {
    made.textContent = shown + (name === "validation" && shown && run.metric !== "accuracy" ? ` ${run.metric}` : "");
    if (name === "message") made.classList.add("message");
    made.title = shown;
  }
  return made;
}

function showHeadings() {
  at("columns").replaceChildren(...COLUMNS.map(heading));
}

function showTable() {
  const wanted = matching().map(row);
  const now = at("rows").children;
  if (wanted.length !== now.length || wanted.some((line, k) => line !== now[k])) at("rows").replaceChildren(...wanted);
  const names = [...ticked.keys()].join("\n");
  if (at("ticked").dataset.names !== names) showTicked();
  at("ticked").dataset.names = names;
}

function showTicked() {
  at("ticked").replaceChildren(...[...ticked].map(([name, colour]) => {
    const button = element("button", name);
    button.style.borderColor = colour;
    button.title = `untick ${name}`;
    button.addEventListener("click", () => tick(false, name));
    return button;
  }));
}

function tick(on, ...names) {
  for (const name of names) {
    if (!on) ticked.delete(name);
    else if (!ticked.has(name) && ticked.size < AT_ONCE) ticked.set(name, rarest());
  }
  remember();
  showTable();
  refreshCurves().catch(tell);
}

function rarest() {
  const used = [...ticked.values()];
  const count = (colour) => used.filter((other) => other === colour).length;
  return COLOURS.reduce((best, colour) => (count(colour) < count(best) ? colour : best));
}

// The curves

function smoothed(values) {
  const weight = Number(at("smooth").value);
  let mean = 0, share = 0;
  return values.map((value) => {
    if (value === null || weight === 0) return value;
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

// What plotly takes for markup is text here.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// "train/loss" and "validation/loss" share the chart "loss"; "images/s" is its own.
function split(name) {
  const found = /^(train|validation)\/(.+)$/.exec(name);
  return found ? { chart: found[2], kind: found[1] } : { chart: name, kind: "" };
}

function traces() {
  const charts = new Map();
  let thinned = 0;
  for (const [run, colour] of ticked) {
    for (const [name, { x, y, of }] of Object.entries(curves.get(run)?.value.series ?? {})) {
      const { chart, kind } = split(name);
      if (chart === "left_out") continue;
      thinned = Math.max(thinned, of > x.length ? of : 0);
      const bold = kind === "validation";
      if (!charts.has(chart)) charts.set(chart, []);
      charts.get(chart).push({
        x, y: chart === "lr" ? y : smoothed(y), type: "scatter", mode: x.length < 3 ? "lines+markers" : "lines",
        name: plain(run + (kind ? ` ${kind}` : "")), line: { color: colour, width: bold ? 2.4 : 1.2 }, opacity: bold || !kind ? 1 : 0.7,
      });
    }
  }
  at("thinned").textContent = thinned ? `; of ${grouped(thinned)} points the lowest and highest of each stretch` : "";
  const place = (chart) => (FIRST.includes(chart) ? FIRST.indexOf(chart) : FIRST.length);
  return [...charts].sort(([a], [b]) => place(a) - place(b) || a.localeCompare(b));
}

function restarts() {
  return [...ticked].flatMap(([run, colour]) => (curves.get(run)?.value.starts ?? []).map((x) => ({
    type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: colour, width: 1, dash: "dot" },
  })));
}

function layout(title, count) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const line = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), automargin: true };
  return {
    title: { text: plain(title), font: { size: 13 }, x: 0.02, xanchor: "left", y: 0.96 },
    margin: { l: 8, r: 12, t: 34, b: 8 }, showlegend: false, hovermode: count > 8 ? "closest" : "x unified", uirevision: at("axis").value + at("log").checked,
    paper_bgcolor: colour("--ground"), plot_bgcolor: colour("--ground"),
    font: { color: colour("--faint"), size: 11, family: "system-ui, sans-serif" },
    xaxis: { ...line, title: { text: at("axis").value, standoff: 6 } },
    yaxis: { ...line, type: at("log").checked ? "log" : "linear", exponentformat: "e", minexponent: 5, separatethousands: true },
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--text") }, namelength: 40 },
    shapes: restarts(), dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
}

function showCharts() {
  const wanted = traces();
  const kept = new Map([...at("charts").children].map((chart) => [chart.dataset.name, chart]));
  for (const [name, chart] of kept) {
    if (wanted.some(([other]) => other === name)) continue;
    Plotly.purge(chart);
    chart.remove();
    kept.delete(name);
  }
  for (const [name, data] of wanted) {
    const chart = kept.get(name) ?? element("div", undefined, "chart");
    chart.dataset.name = name;
    at("charts").append(chart);
    Plotly.react(chart, data, layout(name, data.length), { responsive: true, displayModeBar: false });
  }
  at("none").hidden = wanted.length > 0;
}

function showDifferences() {
  const names = [...ticked.keys()].filter((name) => curves.has(name));
  const settings = names.map((name) => curves.get(name).value.settings);
  const keys = [...new Set(settings.flatMap(Object.keys))];
  const rows = keys.filter((key) => new Set(settings.map((values) => values[key])).size > 1);
  at("differences").hidden = rows.length === 0;
  at("names").replaceChildren(element("th", "setting", "left"), ...names.map((name) => element("th", name, "left")));
  at("settings").replaceChildren(...rows.map((key) => {
    const made = element("tr");
    made.append(element("td", key, "left"), ...settings.map((values) => element("td", values[key] ?? "", "left")));
    return made;
  }));
}

async function refreshCurves() {
  const axis = at("axis").value;
  let changed = curves.size !== ticked.size || [...curves.keys()].some((name) => !ticked.has(name));
  for (const name of [...curves.keys()]) if (!ticked.has(name)) curves.delete(name);
  const answers = await Promise.allSettled([...ticked.keys()].map(async (name) => {
    const run = runs.find((other) => other.name === name);
    const state = JSON.stringify(run);
    const known = curves.get(name);
    if (!run || (known && known.axis === axis && known.state === state && run.state !== "running")) return;
    const text = await fetched(`api/curves?${new URLSearchParams({ run: name, x: axis })}`);
    if (text === known?.text || !ticked.has(name) || axis !== at("axis").value) return;
    curves.set(name, { text, axis, state, value: JSON.parse(text) });
    changed = true;
  }));
  if (changed) {
    showCharts();
    showDifferences();
  }
  const failed = answers.find(({ status }) => status === "rejected"); // which is no reason to keep the others' curves back
  if (failed) throw failed.reason;
}

// What is ticked is part of the address, so that it can be kept.

function remember() {
  history.replaceState(null, "", `#${[...ticked.keys()].map(encodeURIComponent).join(",")}`);
}

function choose() {
  chosen = true;
  const asked = location.hash.slice(1).split(",").filter(Boolean).map(decodeURIComponent).filter((name) => runs.some((run) => run.name === name));
  const running = runs.filter((run) => run.state === "running").slice(0, 3).map((run) => run.name);
  const begun = runs.filter((run) => run.step !== null).slice(0, 1).map((run) => run.name);
  for (const name of asked.length ? asked : running.length ? running : begun) {
    if (ticked.size < AT_ONCE) ticked.set(name, rarest());
  }
}

function take(text) {
  told = text;
  const found = JSON.parse(text);
  runs = found.runs;
  at("folder").textContent = `${found.folder} · ${runs.length}`;
  at("left_out").hidden = found.left_out.length === 0;
  at("left_out").replaceChildren(...found.left_out.map((line) => element("li", line)));
  const names = new Set(runs.map((run) => run.name));
  for (const known of [rows, ticked]) for (const name of [...known.keys()]) if (!names.has(name)) known.delete(name);
  if (!chosen && runs.length) choose();
  showTable();
}

async function look() {
  const begun = performance.now();
  if (!document.hidden) {
    try {
      const text = await fetched("api/runs");
      if (text !== told) take(text);
      await refreshCurves();
      at("live").textContent = runs.length ? "live" : "no runs yet; pipeline run makes the first";
      at("live").classList.remove("broken");
    } catch (error) {
      tell(error);
    }
  }
  setTimeout(look, Math.max(EVERY, 4 * (performance.now() - begun)));
}

function tell(error) {
  at("live").textContent = error instanceof Trouble ? error.message : "a fault of the board; the console of the browser has more";
  at("live").classList.add("broken");
  if (!(error instanceof Trouble)) console.error(error);
}

at("filter").addEventListener("input", showTable);
at("all").addEventListener("click", () => tick(true, ...matching().map((run) => run.name)));
at("nothing").addEventListener("click", () => tick(false, ...ticked.keys()));
at("axis").addEventListener("change", () => refreshCurves().catch(tell));
for (const id of ["smooth", "log"]) at(id).addEventListener("input", showCharts);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showCharts);
showHeadings();
look();
