// What the models have done so far, asked for once a second while the page can be seen.

import { element } from "./layers.js";

const EVERY = 1000, AFTER_A_FAILURE = 5000; // milliseconds
const WINDOW = 5; // seconds over which texts per second are counted
const KEPT = 60; // rates in the small picture

const at = (id) => document.getElementById(id);
const count = (value) => value.toLocaleString("en");

export class Live {
  // ask: gives the counts; model: the name of the one that is shown.
  constructor(ask, model) {
    [this.ask, this.model, this.samples, this.rates, this.timer] = [ask, model, [], [], null];
    document.addEventListener("visibilitychange", () => !document.hidden && this.timer !== null && this.start());
  }

  start() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), 0);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  // Another model is shown from now on.
  forget() {
    [this.samples, this.rates] = [[], []];
    at("rate").textContent = "–";
    at("histogram").replaceChildren();
    if (this.timer !== null) this.start();
  }

  async poll() {
    let wait = EVERY;
    const name = this.model();
    try {
      const { time, models } = await this.ask();
      if (this.timer === null) return;
      if (name === this.model()) this.draw(time, models[name]);
    } catch (error) {
      if (this.timer === null) return;
      at("live-note").textContent = `No counts: ${error.message}`;
      wait = AFTER_A_FAILURE;
      this.samples = [];
    }
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.poll(), wait);
  }

  draw(time, counts) {
    const last = this.samples.at(-1);
    if (last && (last.rows > counts.rows || last.time > time)) this.samples = []; // the server was started again
    this.samples.push({ time, rows: counts.rows });
    while (this.samples.length > 2 && time - this.samples[0].time > WINDOW) this.samples.shift();
    const first = this.samples[0];
    const rate = time > first.time ? (counts.rows - first.rows) / (time - first.time) : null;
    at("rate").textContent = rate === null ? "–" : rate < 10 ? rate.toFixed(1) : count(Math.round(rate));
    if (rate !== null) this.rates = [...this.rates, rate].slice(-KEPT);
    const most = Math.max(1, ...this.rates);
    const x = (i) => ((KEPT - this.rates.length + i) * 120) / (KEPT - 1);
    const points = this.rates.map((value, i) => `${x(i)},${27 - (26 * value) / most}`);
    at("spark").firstElementChild.setAttribute("points", points.join(" "));
    at("rows").textContent = count(counts.rows);
    at("queue").textContent = count(counts.queue);
    at("speedup").textContent = counts.layer_speedup === null ? "–" : `${counts.layer_speedup.toFixed(2)}×`;
    at("live-note").textContent = counts.running
      ? "Since the server started. What is tried on this page is not counted."
      : "The model is being started again.";
    this.drawHistogram(counts);
  }

  drawHistogram({ exits, rows }) {
    const box = at("histogram");
    if (box.childElementCount !== exits.length) {
      const every = Math.ceil(exits.length / 12);
      const shown = (i) => (exits.length - 1 - i) % every === 0;
      const label = (i) => (shown(i) ? String(i + 1) : "\u00a0");
      box.replaceChildren(...exits.map((_, i) => element("div", {}, element("i"), label(i))));
    }
    const most = Math.max(1, ...exits);
    for (const [i, column] of [...box.children].entries()) {
      column.firstElementChild.style.setProperty("--h", `${(80 * exits[i]) / most}%`);
      column.title = `${count(exits[i])} left after layer ${i + 1}`;
    }
    const said = exits.flatMap((number, i) => (number ? [`${i + 1}: ${count(number)}`] : []));
    box.setAttribute("aria-label", rows ? `Texts that left after each layer. ${said.join(", ")}` : "No texts yet");
  }
}
