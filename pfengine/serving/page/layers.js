// Draws what every exit says of one text. Positions on tracks are numbers from 0, full depth, to 1, leave at once.

const COLOURS = 5; // labels with a colour of their own; the others share one
const VISIBLE = 0.004, READABLE = 0.24; // the least part of a bar that is drawn, and that has a text in it
const NAMES = {
  entropy: "entropy", normalised_entropy: "normalised entropy", confidence: "largest probability",
  margin: "lead of the best label", energy: "energy", label: "label", label_0: "probability of the first label",
  label_repeats: "exits in a row with the same label", change: "exits in a row with almost the same score",
  learned: "learned score", layer: "layer",
};

export function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  const { text, set, ...attributes } = options;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  for (const [key, value] of Object.entries(set ?? {})) made.style.setProperty(key, value);
  made.append(...children);
  return made;
}

export const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1%" : `${(100 * p).toFixed(1)}%`);
export const short = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(0);
  return String(Number(value.toPrecision(size < 0.1 ? 2 : 3)));
};

export function place(track, threshold) {
  const part = (threshold - track.slow) / (track.fast - track.slow);
  return Math.min(1, Math.max(0, part)) ** (1 / track.power);
}

export const thresholdAt = (track, u) => track.slow + (track.fast - track.slow) * u ** track.power;

// The exit at a threshold: that of the last step which is not faster. Steps are exact in float32, as the engine is.
export function exitAt(row, threshold, rising) {
  const steps = row.steps;
  if (threshold === null || !steps.length) return row.exit;
  const t = Math.fround(threshold);
  let found = steps[0].exit;
  for (const step of steps) if (rising ? step.threshold <= t : step.threshold >= t) found = step.exit;
  return found;
}

// What an exit is called: a layer, or a model of a cascade.
export const unit = (row) => (row.exits[0].model === null ? "layer" : "model");
export const number = (exit) => exit.model ?? exit.layer;

export const knobClause = (criterion) => criterion.clauses.findIndex((clause) => clause.knob !== null);

export function signalName(clause) {
  if (clause.memory === "votes") return "votes for one label, by number of exits";
  if (clause.memory === "sum") return "confidence of agreeing exits, added up";
  return NAMES[clause.signal] ?? clause.signal;
}

// How the probabilities of a row are drawn: "parts" of one whole, "many" bars of their own, or one "score".
export function kind(explanation, row) {
  if (explanation.problem_type === "regression" || row.labels.length === 1) return "score";
  return explanation.problem_type === "multi_label_classification" ? "many" : "parts";
}

// Which labels have a colour: all where there are few, else those that some exit gives most.
function coloured(row) {
  const peak = row.labels.map((_, i) => Math.max(...row.exits.map((exit) => exit.probabilities[i])));
  const order = row.labels.map((_, i) => i);
  if (order.length <= COLOURS) return order;
  return order.sort((a, b) => peak[b] - peak[a]).slice(0, COLOURS);
}

function legendItem(name, colour) {
  return element("li", {}, element("span", { class: "swatch", set: { "--c": `var(--c${colour})` } }), name);
}

function segment(colour, width, text, name = "seg") {
  return element("div", { class: name, text, set: { "--c": `var(--c${colour})`, "--w": `${100 * width}%` } });
}

function scoreBar(value, low, high) {
  const at = (score) => (100 * (score - low)) / (high - low);
  const [from, to] = [Math.min(0, value), Math.max(0, value)];
  const fill = element("i", { set: { "--c": "var(--c0)", "--l": `${at(from)}%`, "--w": `${at(to) - at(from)}%` } });
  return [element("div", { class: "score" }, fill), element("b", { text: short(value) })];
}

export class Layers {
  constructor(table, legend, onThreshold) {
    [this.table, this.legend, this.body] = [table, legend, table.tBodies[0]];
    let dragged = null;
    const report = (event) => {
      const box = dragged.getBoundingClientRect();
      onThreshold(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
    };
    this.body.addEventListener("pointerdown", (event) => {
      const track = event.target.closest(".track");
      if (!track || !table.classList.contains("lined") || event.button !== 0) return;
      dragged = track;
      track.setPointerCapture(event.pointerId);
      event.preventDefault();
      report(event);
    });
    this.body.addEventListener("pointermove", (event) => dragged && report(event));
    for (const end of ["pointerup", "pointercancel"]) this.body.addEventListener(end, () => (dragged = null));
  }

  // range: of scores, over all rows that are shown beside each other.
  build(explanation, row, range) {
    [this.explanation, this.row] = [explanation, row];
    this.kind = kind(explanation, row);
    const labels = coloured(row);
    this.table.classList.toggle("many", this.kind === "many");
    this.legend.replaceChildren(...(this.kind === "score" ? [] : labels.map((i, c) => legendItem(row.labels[i], c))));
    const others = row.labels.length - labels.length;
    if (others && this.kind === "parts") this.legend.append(legendItem(`${others} other labels`, COLOURS));
    if (others && this.kind === "many") this.legend.append(element("li", { text: `${others} more, not drawn` }));
    this.table.classList.toggle("unsignalled", !explanation.criterion.clauses.length);
    this.rows = row.exits.map((exit, i) => this.drawn(exit, i, labels, range));
    const cut = element("td", { colspan: 4 }, (this.cutText = element("span")));
    this.cut = element("tr", { class: "cut" }, cut);
    this.body.replaceChildren(...this.rows);
  }

  drawn(exit, i, labels, range) {
    const bar = element("div", { class: "bar", "aria-hidden": "true" });
    const p = exit.probabilities;
    if (this.kind === "score") bar.append(...scoreBar(p[0], ...range));
    else if (this.kind === "many") bar.append(...labels.map((i, colour) => segment(colour, p[i], "")));
    else bar.append(...this.parts(p, labels));
    const best = p.map((value, i) => [value, i]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const said = this.kind === "score" ? short(p[0])
      : best.map(([value, i]) => `${this.row.labels[i]} ${percent(value)}`).join(", ");
    const track = element("div", { class: "track" }, element("div", { class: "zone" }));
    const value = element("td", { class: "value" });
    if (i < this.row.exits.length - 1) this.drawSignal(track, value, exit);
    else value.textContent = "last";
    return element("tr", {},
      element("th", { scope: "row", text: number(exit) }),
      element("td", { title: said }, bar, element("span", { class: "spoken", text: said })),
      element("td", { class: "signal" }, track),
      value);
  }

  // Parts of one whole: labels with a colour, the largest of the others by its name, and the rest.
  parts(p, labels) {
    const drawn = labels.filter((i) => p[i] >= VISIBLE)
      .map((i) => segment(labels.indexOf(i), p[i], p[i] >= READABLE ? `${Math.round(100 * p[i])}%` : ""));
    const others = p.map((_, i) => i).filter((i) => !labels.includes(i)).sort((a, b) => p[b] - p[a]);
    if (others.length) {
      const [most] = others;
      const rest = others.slice(1).reduce((sum, i) => sum + p[i], 0);
      const name = p[most] >= READABLE ? this.row.labels[most] : "";
      if (p[most] >= VISIBLE) drawn.push(segment(COLOURS, p[most], name, "seg named"));
      if (rest >= VISIBLE) drawn.push(segment(COLOURS, rest, ""));
    }
    return drawn;
  }

  drawSignal(track, value, exit) {
    const { criterion } = this.explanation;
    const main = knobClause(criterion);
    for (const [i, compared] of exit.clauses.entries()) {
      if (i !== main) {
        if (compared.holds) value.textContent = `◆ ${value.textContent}`;
        continue;
      }
      if (compared.at === null) {
        value.textContent = compared.value === null ? "–" : short(compared.value);
        continue;
      }
      value.textContent = short(compared.at);
      if (!criterion.track) continue;
      track.append(element("div", { class: "dot", set: { "--x": `${100 * place(criterion.track, compared.at)}%` } }));
      if (criterion.threshold === null && compared.limit !== null) {
        const x = `${100 * place(criterion.track, compared.limit)}%`;
        track.append(element("div", { class: "limit", set: { "--x": x } }));
      }
    }
  }

  // u: place of the threshold's line, null for none.
  update(exit, threshold, u, note) {
    this.countRuns(threshold);
    this.table.classList.toggle("lined", u !== null);
    if (u !== null) this.table.style.setProperty("--line", `${100 * u}%`);
    for (const [i, row] of this.rows.entries()) {
      row.classList.toggle("exit", i === exit);
      row.classList.toggle("skipped", i > exit);
    }
    this.cutText.textContent = note;
    this.rows[exit].after(this.cut);
  }

  // Of a criterion whose comparison must hold at several exits running: at how many it does, at this threshold.
  countRuns(threshold) {
    const main = knobClause(this.explanation.criterion);
    const clause = this.explanation.criterion.clauses[main];
    if (threshold === null || !clause || clause.knob !== "threshold" || clause.times < 2) return;
    const t = Math.fround(threshold);
    let run = 0;
    for (const [i, exit] of this.row.exits.slice(0, -1).entries()) {
      const v = exit.clauses[main].at;
      const holds = { "<": v < t, "<=": v <= t, ">": v > t, ">=": v >= t }[clause.comparison];
      run = v !== null && holds ? run + 1 : 0;
      this.rows[i].lastElementChild.textContent = `${short(v)} (${run}/${clause.times})`;
    }
  }
}
