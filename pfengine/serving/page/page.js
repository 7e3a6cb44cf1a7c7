// The page's state: what was asked, what every exit says of it, and the threshold that is looked at.

import {
  Layers, element, exitAt, kind, knobClause, number, percent, place, short, signalName, thresholdAt, unit,
} from "./layers.js";
import { Live } from "./live.js";

const SPOKEN_AFTER = 500; // milliseconds without a change before a screen reader is told

const at = (id) => document.getElementById(id);
const state = { models: [], most: 32, explanation: null, asked: null, shown: 0, threshold: null, items: [] };
const layers = new Layers(at("layers"), at("legend"), (u) => setPlace(u));
const live = new Live(() => ask("ui/live"), () => model().name);
let running = null;
let starting = null;
let speaking = null;

const model = () => state.models[Math.max(0, at("model").selectedIndex)];
const ranks = () => model().labels === 1;
const row = () => state.explanation.rows[state.shown];
const rising = () => state.explanation.criterion.clauses[knobClause(state.explanation.criterion)]?.rising ?? true;
const times = (value) => `${value.toFixed(value < 10 ? 1 : 0)} times fewer`;
const rounded = (text) => text.replace(/\d+\.\d{4,}(?!\d|e)/g, (digits) => Number(digits).toPrecision(4));
const sentence = (text) => text[0].toUpperCase() + text.slice(1);
const milliseconds = (seconds) => `${short(1000 * seconds)} ms`;

async function ask(address, body, signal) {
  const headers = {};
  if (at("key").value) headers.authorization = `Bearer ${at("key").value}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    const method = body ? "POST" : "GET";
    response = await fetch(address, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer.");
  }
  if (response.status === 401) {
    at("key-field").hidden = false;
    live.stop();
    throw new Error(at("key").value ? "the server does not take this API key." : "this server asks for its API key.");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(found.error ?? `the server answers with status ${response.status}.`);
  return found;
}

function fail(message) {
  at("error").hidden = !message;
  at("error").textContent = message && sentence(message);
}

// Ask which models there are; once where that is asked for again meanwhile.
function start() {
  return (starting ??= load().finally(() => (starting = null)));
}

async function load() {
  const found = await ask("ui/models");
  [state.models, state.most] = [found.models, found.rows];
  at("model").replaceChildren(...state.models.map(({ name }) => element("option", { text: name, value: name })));
  at("model-field").hidden = state.models.length < 2;
  chooseModel();
  live.start();
}

function chooseModel() {
  const { criteria } = model();
  const named = (text, i) => (i ? text : `${rounded(text)} (the model's own)`);
  at("criterion").replaceChildren(
    ...criteria.map((text, i) => element("option", { text: named(text, i), value: text })));
  at("text-label").textContent = ranks() ? "Query" : "Text";
  at("second-label").firstChild.textContent = ranks() ? "Documents " : "Second text ";
  const hint = ranks() ? `one per line, at most ${state.most}` : "optional, for pairs";
  at("second-label").lastElementChild.textContent = hint;
  at("second").rows = ranks() ? 4 : 1;
  at("go").textContent = ranks() ? "Rank" : "Classify";
  at("result").hidden = true;
  at("live-head").textContent = state.models.length > 1 ? `Live: ${model().name}` : "Live";
  live.forget();
}

function request() {
  const body = { text: at("text").value, model: model().name };
  const second = at("second").value;
  if (!body.text.trim()) throw new Error(ranks() ? "type a query first." : "type a text first.");
  if (ranks()) {
    body.documents = second.split("\n").filter((line) => line.trim());
    if (!body.documents.length) throw new Error("type some documents first, one per line.");
  } else if (second.trim()) {
    body.text_pair = second;
  }
  if (at("criterion").selectedIndex > 0) body.criterion = at("criterion").value;
  return body;
}

async function submit() {
  running?.abort();
  const mine = (running = new AbortController());
  fail("");
  at("result").setAttribute("aria-busy", "true");
  try {
    if (!state.models.length) await start();
    const body = request();
    const explanation = await ask("ui/explain", body, mine.signal);
    if (mine !== running) return;
    if (explanation.rows.every((each) => each.error)) throw new Error(`the text ${explanation.rows[0].error}.`);
    show(explanation, body);
  } catch (error) {
    if (error.name !== "AbortError" && mine === running) fail(error.message);
  } finally {
    if (mine === running) at("result").removeAttribute("aria-busy");
  }
}

function show(explanation, body) {
  const { criterion } = explanation;
  const clause = criterion.clauses[knobClause(criterion)];
  Object.assign(state, { explanation, asked: body, threshold: criterion.threshold });
  state.shown = explanation.rows.findIndex((each) => !each.error);
  at("result").hidden = false;
  at("slider-row").hidden = at("knob").hidden = !criterion.track || !row().steps.length;
  at("signal-head").textContent = clause ? sentence(signalName(clause)) : "Signal";
  at("exit-head").textContent = sentence(unit(row()));
  at("bars-head").textContent = kind(explanation, row()) === "score" ? "Score" : "Probabilities";
  const runs = clause?.knob === "threshold" && clause.times > 1;
  const enough = runs ? `once ${clause.times} dots in a row are` : "at the first dot";
  at("how").textContent = `The text leaves ${enough} in the shaded part.`;
  if (criterion.track) {
    at("threshold").step = criterion.counts ? 1 / Math.abs(criterion.track.slow - criterion.track.fast) : 0.001;
    at("threshold-number").step = criterion.counts ? 1 : "any";
  }
  buildDocuments();
  choose(body.documents ? updateDocuments()[0] : state.shown);
}

// The range of scores that bars of one label share: 0 and all of them.
function range() {
  const scores = state.explanation.rows.flatMap((each) => (each.exits ?? []).map((exit) => exit.probabilities[0]));
  const [low, high] = [Math.min(0, ...scores), Math.max(0, ...scores)];
  return high > low ? [low, high] : [0, 1];
}

function choose(shown) {
  state.shown = shown;
  layers.build(state.explanation, row(), range());
  const main = knobClause(state.explanation.criterion);
  at("other-rule").hidden = !row().exits.some((exit) => exit.clauses.some((each, i) => i !== main && each.holds));
  update();
}

function buildDocuments() {
  const { documents } = state.asked;
  at("documents").hidden = !documents;
  state.items = !documents ? [] : state.explanation.rows.map((each, i) => {
    const cells = (each.exits ?? []).map(() => element("i"));
    const strip = element("span", { class: "strip", "aria-hidden": "true" }, ...cells);
    const parts = ["number", "what", "value"].map((name) => element("span", { class: name }));
    parts[1].textContent = documents[i];
    const button = element("button", { type: "button" }, ...parts, strip);
    button.disabled = Boolean(each.error);
    button.addEventListener("click", () => choose(i));
    return { number: parts[0], value: parts[2], strip, button, item: element("li", {}, button) };
  });
  at("documents").replaceChildren(...state.items.map(({ item }) => item));
}

const leaves = (each) => exitAt(each, state.threshold, rising());

function updateDocuments() {
  const score = (each) => (each.error ? -Infinity : each.exits[leaves(each)].probabilities[0]);
  const { rows } = state.explanation;
  const order = rows.map((_, i) => i).sort((a, b) => score(rows[b]) - score(rows[a]) || a - b);
  for (const [rank, i] of order.entries()) {
    const [each, { number, value, strip, button }] = [rows[i], state.items[i]];
    number.textContent = rank + 1;
    value.textContent = each.error ? `not ranked: it ${each.error}` : short(score(each));
    button.setAttribute("aria-pressed", String(i === state.shown));
    for (const [k, cell] of [...strip.children].entries()) cell.classList.toggle("done", k <= leaves(each));
  }
  const items = order.map((i) => state.items[i].item);
  if (items.some((item, rank) => at("documents").children[rank] !== item)) {
    const focused = document.activeElement;
    at("documents").replaceChildren(...items);
    if (at("documents").contains(focused)) focused.focus();
  }
  return order;
}

// Layers and seconds of some rows that leave where they do at this threshold, and of all their layers.
function cost(rows) {
  const all = state.explanation.layers * rows.length;
  const computed = rows.reduce((sum, each) => sum + each.exits[leaves(each)].computed, 0);
  const seconds = rows.reduce((sum, each) => sum + each.exits[leaves(each)].seconds, 0);
  const full = rows.reduce((sum, each) => sum + each.full_seconds, 0);
  if (computed > all) return `${computed - all} layers more than the ${all} of full depth.`;
  if (computed === all) return `All ${all} layers computed, nothing saved.`;
  const both = `${milliseconds(seconds)} instead of ${milliseconds(full)}`;
  const timed = `Timed on this server, one text at a time: ${both}.`;
  return `${all - computed} of ${all} layers not computed: ${times(all / computed)}. ${timed}`;
}

// Everything that depends on the threshold. typed: into the field, which stays as it is then.
function update(typed = false) {
  const { criterion, layers: all, rows } = state.explanation;
  const { documents } = state.asked;
  const exit = leaves(row());
  const { computed } = row().exits[exit];
  const last = row().exits.length - 1;
  const where = `after ${unit(row())} ${number(row().exits[exit])} of ${number(row().exits[last])}`;
  if (documents) {
    const [first] = updateDocuments();
    at("headline").textContent = `Best: ${documents[first]}`;
    at("chosen").textContent = `${documents[state.shown]}: ${answer(exit)} ${where}`;
  } else {
    at("headline").textContent = `${answer(exit)} ${where}`;
  }
  at("chosen").hidden = !documents;
  at("saved").textContent = cost(rows.filter((each) => !each.error));
  at("full").textContent = documents || exit === last ? "" : alike(exit, last)
    ? `Full depth gives the same answer: ${answer(last)}.` : `Full depth would answer ${answer(last)}.`;
  if (row().truncated) at("full").textContent += ` The text is cut after ${row().tokens} tokens.`;
  const lined = criterion.track && state.threshold !== null && row().steps.length;
  const u = lined ? place(criterion.track, state.threshold) : null;
  const saved = all - computed;
  layers.update(exit, state.threshold, u, saved > 0 ? `not computed: ${saved} of ${all} layers` : "nothing saved");
  if (!typed) at("threshold-number").value = state.threshold === null ? "" : Number(state.threshold.toPrecision(4));
  if (u !== null) at("threshold").value = u;
  const said = state.threshold === null ? "a threshold per exit" : short(state.threshold);
  at("threshold").setAttribute("aria-valuetext", `${said}: leaves ${where}`);
  at("calibration").textContent = calibrated();
  clearTimeout(speaking);
  const told = `${at("headline").textContent}. ${at("saved").textContent}`;
  speaking = setTimeout(() => (at("spoken").textContent = told), SPOKEN_AFTER);
}

// The labels of an answer: the best one; of labels that exclude no others all that are more likely than not.
function answers(exit) {
  const p = row().exits[exit].probabilities;
  const order = p.map((_, i) => i).sort((a, b) => p[b] - p[a]);
  const likely = kind(state.explanation, row()) === "many" ? order.filter((i) => p[i] > 0.5) : [];
  return likely.length ? likely : order.slice(0, 1);
}

function answer(exit) {
  const p = row().exits[exit].probabilities;
  if (kind(state.explanation, row()) === "score") return `${row().labels[0]} ${short(p[0])}`;
  return answers(exit).map((i) => `${row().labels[i]} ${percent(p[i])}`).join(", ");
}

function alike(exit, other) {
  if (kind(state.explanation, row()) === "score") return false;
  return String(answers(exit).sort()) === String(answers(other).sort());
}

// What held-out texts did at this threshold, between the points of the calibration table.
function calibrated() {
  const points = [...model().calibration].sort((a, b) => a.threshold - b.threshold);
  const t = state.threshold;
  if (at("criterion").selectedIndex > 0 || t === null || points.length < 2) return "";
  const above = points.findIndex((point) => point.threshold >= t);
  if (above < 0 || t < points[0].threshold) return "This threshold is outside of what was tried on held-out texts.";
  const [a, b] = [points[Math.max(0, above - 1)], points[above]];
  const part = b.threshold > a.threshold ? (t - a.threshold) / (b.threshold - a.threshold) : 1;
  const between = (key) => (a[key] === null || b[key] === null ? null : a[key] + part * (b[key] - a[key]));
  const agreement = between("agreement");
  const asBefore = agreement === null ? "" : ` and answers ${percent(agreement)} as full depth does`;
  return `On held-out texts this threshold takes ${times(between("layer_speedup"))} layers${asBefore}.`;
}

function setPlace(u) {
  const { criterion } = state.explanation;
  const threshold = thresholdAt(criterion.track, u);
  setThreshold(criterion.counts ? Math.round(threshold) : threshold);
}

function setThreshold(threshold, typed) {
  state.threshold = threshold;
  update(typed);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
for (const id of ["text", "second"]) {
  at(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
  });
}
at("model").addEventListener("change", chooseModel);
at("criterion").addEventListener("change", () => !at("result").hidden && submit());
at("threshold").addEventListener("input", (event) => setPlace(event.target.valueAsNumber));
at("threshold-number").addEventListener("input", (event) => {
  const value = event.target.valueAsNumber;
  const { counts } = state.explanation.criterion;
  if (Number.isFinite(value)) setThreshold(counts ? Math.max(1, Math.round(value)) : value, true);
});
at("reset").addEventListener("click", () => setThreshold(state.explanation.criterion.threshold));
at("key").addEventListener("change", () => start().then(() => fail(""), (error) => fail(error.message)));
start().catch((error) => fail(error.message));
