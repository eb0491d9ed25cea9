// The heat map of tokens: one per .heatmap, its data packed by texts.py. Texts enter the page as text nodes only.
"use strict";

// How a position is coloured. edges: a value at or above edges[i] takes step i + 1. ramp: the CSS colours of the steps.
const COLORS = {
  js_nats: { title: "JS divergence", unit: "nats", ramp: "q", edges: [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6] },
  kl_base_tuned_nats: { title: "KL(base‖tuned)", unit: "nats", ramp: "q", edges: [0.003, 0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8] },
  kl_tuned_base_nats: { title: "KL(tuned‖base)", unit: "nats", ramp: "q", edges: [0.003, 0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8] },
  class: { title: "rank class", unit: "", ramp: "c", words: ["unshifted", "marginal", "shifted"], means: ["base rank 1", "rank 2–3", "below"] },
  entropy_change_nats: { title: "entropy change", unit: "nats, tuned − base", ramp: "d", edges: [-2, -1, -0.5, -0.2, -0.05, 0.05, 0.2, 0.5, 1, 2] },
};
const LEAST = [0, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6];
const HIGH = 0.1;
const PAGE = 10;
const FLOWS = [["flow_1", "1"], ["flow_2_3", "2–3"], ["flow_4_10", "4–10"], ["flow_11_100", "11–100"], ["flow_over_100", "> 100"]];
const FIGURES = [
  ["js_nats", "JS", "nats"], ["tv", "TV", ""], ["kl_base_tuned_nats", "KL(base‖tuned)", "nats"], ["kl_tuned_base_nats", "KL(tuned‖base)", "nats"],
  ["entropy_base_nats", "entropy, base", "nats"], ["entropy_tuned_nats", "entropy, tuned", "nats"],
  ["logp_base_nats", "log p ◆, base", "nats"], ["logp_tuned_nats", "log p ◆, tuned", "nats"],
];
const OWN_PLACE = new Set([...FIGURES.map((f) => f[0]), ...FLOWS.map((f) => f[0]), "text", "position", "token", "class", "swapped", "source",
  "rank_base", "rank_tuned", "rank_base_of_tuned_top1", "p_base_of_tuned_top1", "top_base_ids", "top_tuned_ids", "top_base_logp",
  "top_tuned_logp", "top_base_logp_tuned", "top_tuned_logp_base", "entropy_change_nats"]);
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

// --- reading the packed columns ---------------------------------------------------------------------------------------

let halves;
function halfTable() {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    halves[bits] = exponent === 31 ? (fraction ? NaN : sign * Infinity)
      : sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }
  return halves;
}

async function unpack(column) {
  const text = atob(column.data), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = Number(column.type[1]), count = planes.length / size, bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane++) for (let i = 0, from = plane * count; i < count; i++) bytes[i * size + plane] = planes[from + i];
  if (column.type !== "f2") return new ARRAYS[column.type](bytes.buffer);
  const bits = new Uint16Array(bytes.buffer), table = halfTable();
  return Float32Array.from(bits, (b) => table[b]);
}

// --- how things are written -------------------------------------------------------------------------------------------

const MARKS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u200b": "∅", "\ufeff": "∅" };

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

// A piece with every mark visible: ␣ for spaces, ↵ for newlines, control pictures for the rest.
function visible(piece) {
  if (piece === "") return "∅";
  return piece.replace(/ /g, "␣").replace(/[\n\r\t\u00a0\u200b\ufeff]/g, (c) => MARKS[c])
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/[\u202a-\u202e\u2066-\u2069]/g, "␦");
}

function number(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const [mantissa, exponent] = value.toExponential(1).split("e");
  const text = Number.isInteger(value) ? value.toLocaleString("en") : size >= 1e-3 ? (size < 1 ? value.toFixed(3) : value.toPrecision(3))
    : `${mantissa}×10${[...exponent].map((c) => SUPERSCRIPT[c] ?? "").join("")}`;
  return text.replace(/-/g, "−");
}

function percent(p) {
  if (Number.isNaN(p) || p === undefined) return "–";
  const shown = 100 * p;
  if (shown === 0) return "0 %";
  return shown < 0.01 ? "<0.01 %" : shown < 1 ? `${shown.toFixed(2)} %` : shown > 99.95 && p < 1 ? ">99.9 %" : `${shown.toFixed(1)} %`;
}

// The box of a token; of its last line where it is broken.
function boxOf(token) {
  const boxes = token.getClientRects();
  return boxes[boxes.length - 1];
}

function el(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// --- the heat map -----------------------------------------------------------------------------------------------------

class HeatMap {
  constructor(root, index, packed, columns) {
    Object.assign(this, { root, index, packed, columns });
    this.prefix = index ? `m${index}-` : "";
    this.role = (name) => root.querySelector(`[data-role="${name}"]`);
    this.rows = packed.starts[packed.starts.length - 1];
    this.match = new Uint8Array(this.rows).fill(1);
    this.filtered = false;
    this.limit = PAGE;
    this.active = null;
    const { entropy_base_nats: before, entropy_tuned_nats: after } = columns;
    if (before && after) columns.entropy_change_nats = before.map((value, i) => after[i] - value);
    this.spaced = !packed.pieces.some((piece) => /\s/.test(piece));
    this.stats = packed.texts.map((_, t) => this.shiftOf(t));
    this.textOf = new Uint16Array(this.rows);
    packed.texts.forEach((_, t) => this.textOf.fill(t, packed.starts[t], packed.starts[t + 1]));
    this.buildTools();
    this.buildTexts();
    this.setColor(this.role("color").value);
    this.filter();
    this.listen();
  }

  shiftOf(t) {
    let sum = 0, max = 0, high = 0;
    const [from, to] = [this.packed.starts[t], this.packed.starts[t + 1]];
    for (let i = from; i < to; i++) {
      const js = this.columns.js_nats[i];
      sum += js;
      if (js > max) max = js;
      if (js > HIGH) high++;
    }
    const n = Math.max(1, to - from);
    return { mean: sum / n, max, share: high / n };
  }

  word(name, row) {
    return this.packed.columns[name].words[this.columns[name][row]];
  }

  piece(row) {
    return this.packed.pieces[this.columns.token[row]];
  }

  // -- tools: the options that the table allows --

  buildTools() {
    for (const [name, color] of Object.entries(COLORS)) {
      if (this.columns[name]) this.role("color").append(new Option(color.title, name));
    }
    const words = this.packed.columns.class?.words;
    if (words) {
      const field = this.role("classes");
      field.hidden = false;
      const known = COLORS.class.words.filter((word) => words.includes(word));
      for (const word of [...known, ...words.filter((word) => !known.includes(word))]) {
        const box = Object.assign(el("input"), { type: "checkbox", checked: true, value: word });
        field.append(el("label", "chip", box, word));
      }
    }
    const counts = new Map();
    for (const token of this.columns.token) counts.set(token, (counts.get(token) || 0) + 1);
    const frequent = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 200);
    const list = this.root.querySelector("datalist");
    for (const [token, count] of frequent) list.append(new Option(`${count}×`, visible(this.packed.pieces[token])));
    if (matchMedia("(max-width: 720px)").matches) this.root.querySelector(".filters").open = false;
  }

  // -- texts: a shell for each, its tokens when it comes into view --

  buildTexts() {
    this.shells = this.packed.texts.map((text, t) => {
      const { mean, max, share } = this.stats[t], length = this.packed.starts[t + 1] - this.packed.starts[t];
      const head = el("div", "text-head", el("span", "text-name", `Text ${text.id}`),
        el("span", "fine", `JS mean ${number(mean)} · max ${number(max)} nats · ${percent(share)} above ${HIGH} · ${length} tokens`));
      const shell = el("section", "text", head);
      if (text.prompt) {
        const long = text.prompt.length > 160 || text.prompt.trim().includes("\n");
        const prompt = long ? el("details", "prompt", el("summary", "", text.prompt.slice(0, 140).replace(/\s+/g, " ") + "…"), el("div", "", text.prompt))
          : el("p", "prompt", text.prompt);
        shell.append(prompt);
      }
      const body = el("div", "tokens" + (this.spaced ? " spaced" : ""));
      body.setAttribute("role", "group");
      body.setAttribute("aria-label", `Tokens of text ${text.id}`);
      body.style.minHeight = `${Math.ceil(length / 16) * 30}px`;
      shell.append(body);
      shell.dataset.t = t;
      return shell;
    });
    this.order = this.shells.map((_, t) => t);
    this.hit = this.shells.map(() => true);
    this.role("texts").append(...this.shells);
    this.inView = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.render(Number(entry.target.dataset.t));
    }, { rootMargin: "600px" });
    for (const shell of this.shells) this.inView.observe(shell);
  }

  bodyOf(t) {
    return this.shells[t].lastChild;
  }

  render(t) {
    const body = this.bodyOf(t);
    if (body.firstChild) return;
    this.inView.unobserve(this.shells[t]);
    const swapped = this.columns.swapped, parts = [];
    for (let row = this.packed.starts[t]; row < this.packed.starts[t + 1]; row++) {
      const token = el("span");
      token.dataset.row = row;
      const piece = this.piece(row), blank = /^\s*$/.test(piece), lead = blank ? "" : /^ */.exec(piece)[0];
      const [, inner, end] = /^([^]*?)(\n*)$/.exec(piece.slice(lead.length));
      inner.split("\n").forEach((line, i) => {
        if (i) token.append("↵", el("br"));
        if (line) token.append(blank ? visible(line) : visible(line).replace(/␣/g, " "));
      });
      token.append("↵".repeat(end.length) || (piece ? "" : visible("")));
      token.className = this.tokenClass(row, swapped && swapped[row]);
      if (lead) parts.push(lead);
      parts.push(token);
      for (const _ of end) parts.push(el("br"));
    }
    body.append(...parts);
    body.style.minHeight = "";
  }

  span(row) {
    const t = this.textOf[row];
    this.reveal(t);
    return this.bodyOf(t).querySelector(`[data-row="${row}"]`);
  }

  tokenClass(row, swapped) {
    const blank = /^\s*$/.test(this.piece(row)) ? " blank" : "";
    return `k ${COLORS[this.color].ramp}${this.step(row)}${blank}${swapped ? " swapped" : ""}${this.filtered && !this.match[row] ? " dim" : ""}`;
  }

  repaint() {
    const swapped = this.columns.swapped;
    for (const token of this.role("texts").querySelectorAll(".k")) {
      const row = Number(token.dataset.row);
      token.className = this.tokenClass(row, swapped && swapped[row]);
    }
  }

  // -- colour --

  step(row) {
    const { edges, words } = COLORS[this.color], value = this.columns[this.color][row];
    if (words) return Math.max(0, words.indexOf(this.word("class", row)));
    let step = 0;
    while (step < edges.length && value >= edges[step]) step++;
    return step;
  }

  setColor(name) {
    this.color = name;
    this.repaint();
    this.drawLegend();
    this.drawOverview();
  }

  drawLegend() {
    const { title, unit, ramp, edges, words, means } = COLORS[this.color];
    const steps = words ? words.length : edges.length + 1, counts = new Array(steps).fill(0);
    let total = 0;
    for (let row = 0; row < this.rows; row++) if (this.match[row]) { counts[this.step(row)]++; total++; }
    const cells = counts.map((count, i) => {
      const from = words ? words[i] : i ? String(edges[i - 1]).replace("-", "−") : ramp === "q" ? "0" : `< ${String(edges[0]).replace("-", "−")}`;
      const cell = el("span", "cell", el("span", `swatch ${ramp}${i}`, words ? "token" : ""), el("span", !words && i ? "edge from" : "edge", from), el("span", "fine", percent(total ? count / total : 0)));
      if (means) cell.children[1].append(el("span", "fine", ` ${means[i]}`));
      cell.title = `${count.toLocaleString("en")} of ${total.toLocaleString("en")} positions`;
      return cell;
    });
    const extra = this.columns.swapped ? [el("span", "cell", el("span", "k swapped", "token"), el("span", "fine", "taken from the other model"))] : [];
    this.role("legend").replaceChildren(el("span", "legend-title", title, unit ? el("span", "fine", ` ${unit}`) : ""), el("div", "cells" + (words ? " words" : ""), ...cells), ...extra);
  }

  // One row of pixels per shown text, one column per position.
  drawOverview() {
    const canvas = this.role("overview"), shown = this.shownTexts(), starts = this.packed.starts;
    const still = COLORS[this.color].ramp === "d" ? 5 : 0, faint = [140, 134, 126];  // a match that did not move stays visible
    const longest = Math.max(1, ...shown.map((t) => starts[t + 1] - starts[t]));
    const swatches = [...this.role("legend").querySelectorAll(".swatch")];
    const colors = swatches.map((swatch) => getComputedStyle(swatch).backgroundColor.match(/[\d.]+/g).map(Number));
    canvas.width = longest;
    canvas.height = Math.max(1, shown.length);
    canvas.style.height = `${Math.min(220, Math.max(16, shown.length * (shown.length < 12 ? 10 : 4)))}px`;
    const pen = canvas.getContext("2d"), image = pen.createImageData(canvas.width, canvas.height);
    shown.forEach((t, y) => {
      for (let row = starts[t], at = y * longest * 4; row < starts[t + 1]; row++, at += 4) {
        const step = this.step(row), hit = !this.filtered || this.match[row];
        const [red, green, blue] = this.filtered && hit && step === still ? faint : colors[step];
        image.data.set([red, green, blue, hit ? 255 : 40], at);
      }
    });
    pen.putImageData(image, 0, 0);
    this.shown = shown;
  }

  overviewRow(event) {
    const box = event.target.getBoundingClientRect(), canvas = this.role("overview");
    const t = this.shown[Math.min(this.shown.length - 1, Math.floor((event.clientY - box.top) / box.height * canvas.height))];
    const row = t === undefined ? -1 : this.packed.starts[t] + Math.floor((event.clientX - box.left) / box.width * canvas.width);
    return t !== undefined && row < this.packed.starts[t + 1] ? row : -1;
  }

  // -- filters and order --

  filter() {
    const { js_nats: js, position, token } = this.columns;
    const query = this.role("token").value, kinds = query ? this.kindsOf(query) : null;
    const boxes = [...this.role("classes").querySelectorAll("input")], allowed = new Set(boxes.filter((b) => b.checked).map((b) => b.value));
    const everyClass = boxes.every((b) => b.checked);
    const from = this.role("from").value === "" ? 0 : Number(this.role("from").value), to = this.role("to").value === "" ? Infinity : Number(this.role("to").value);
    const least = LEAST[this.role("least").value];
    this.role("least-shown").textContent = least;
    this.filtered = Boolean(kinds) || !everyClass || from > 0 || to < Infinity || least > 0;
    for (let row = 0; row < this.rows; row++) {
      this.match[row] = js[row] >= least && position[row] >= from && position[row] <= to && (!kinds || kinds.has(token[row])) && (everyClass || allowed.has(this.word("class", row)));
    }
    const hits = this.packed.texts.map((_, t) => this.match.subarray(this.packed.starts[t], this.packed.starts[t + 1]).includes(1));
    this.hit = hits.map((hit) => hit || !this.filtered);
    this.limit = PAGE;
    this.showTexts();
    const positions = this.match.reduce((sum, hit) => sum + hit, 0), texts = hits.filter(Boolean).length;
    this.role("status").textContent = this.filtered
      ? `${positions.toLocaleString("en")} of ${this.rows.toLocaleString("en")} positions match, in ${texts} of ${hits.length} texts.`
      : `${this.rows.toLocaleString("en")} positions in ${hits.length} texts.`;
    this.repaint();
    this.drawLegend();
    this.drawOverview();
    if (!this.active || !this.hit[this.textOf[this.active.dataset.row]]) this.makeFirstActive();
  }

  // The first texts of those that match, in order, up to the limit; a button shows more.
  showTexts() {
    const matching = this.shownTexts(), rest = matching.length - this.limit;
    this.shells.forEach((shell) => { shell.hidden = true; });
    for (const t of matching.slice(0, this.limit)) this.shells[t].hidden = false;
    this.role("more").hidden = this.role("all").hidden = rest <= 0;
    this.role("more").textContent = `Show ${Math.min(rest, 2 * PAGE)} more`;
    this.role("all").textContent = `Show all ${matching.length} texts`;
  }

  reveal(t) {
    const place = this.shownTexts().indexOf(t);
    if (place >= this.limit) {
      this.limit = place + 1;
      this.showTexts();
    }
    this.render(t);
  }

  // The tokens a query means: the one written exactly so, else all that contain it.
  kindsOf(query) {
    const wanted = visible(query), exact = new Set(), part = new Set(), low = wanted.toLowerCase();
    this.packed.pieces.forEach((piece, i) => {
      const form = visible(piece);
      if (form === wanted || form === query) exact.add(i);
      if (form.toLowerCase().includes(low)) part.add(i);
    });
    return exact.size ? exact : part;
  }

  reset() {
    for (const name of ["token", "from", "to"]) this.role(name).value = "";
    this.role("least").value = 0;
    for (const box of this.role("classes").querySelectorAll("input")) box.checked = true;
    this.filter();
  }

  sort(by) {
    this.order = this.shells.map((_, t) => t);
    if (by !== "order") this.order.sort((a, b) => this.stats[b][by] - this.stats[a][by]);
    this.role("texts").append(...this.order.map((t) => this.shells[t]));
    this.limit = PAGE;
    this.showTexts();
    this.drawOverview();
    this.makeFirstActive();
  }

  shownTexts() {
    return this.order.filter((t) => this.hit[t]);
  }

  // -- one token is in the tab order; the arrow keys move it --

  makeFirstActive() {
    const t = this.shownTexts().find((i) => this.packed.starts[i + 1] > this.packed.starts[i]);
    if (t !== undefined) this.setActive(this.span(this.packed.starts[t]));
  }

  setActive(token) {
    if (this.active) this.active.tabIndex = -1;
    this.active = token;
    token.tabIndex = 0;
  }

  focus(row, where = "nearest") {
    const token = this.span(row);
    this.setActive(token);
    token.setAttribute("role", "button");
    token.setAttribute("aria-label", this.sentence(row));
    token.focus({ preventScroll: true });
    token.scrollIntoView({ block: where, inline: "nearest" });
    card.show(this, row, token);
  }

  sentence(row) {
    const kind = this.columns.class ? `, ${this.word("class", row)}` : "";
    return `${visible(this.piece(row))}, position ${this.columns.position[row]}, JS ${number(this.columns.js_nats[row])} nats${kind}`;
  }

  // The next or previous row in the order shown; `wanted` says which rows count.
  neighbour(row, by, wanted = () => true) {
    const texts = this.shownTexts(), starts = this.packed.starts;
    let at = texts.indexOf(this.textOf[row]);
    for (row += by; at >= 0 && at < texts.length; at += by, row = by > 0 ? starts[texts[at]] : starts[texts[at] + 1] - 1) {
      for (; row >= starts[texts[at]] && row < starts[texts[at] + 1]; row += by) if (wanted(row)) return row;
    }
    return -1;
  }

  // The token above or below: the nearest in the next line of this text, else the first line of the next text.
  vertical(row, by) {
    const here = boxOf(this.span(row)), middle = (here.left + here.right) / 2, start = this.textOf[row];
    let best = -1, line = null, gap = Infinity;
    for (let next = this.neighbour(row, by); next >= 0; next = this.neighbour(next, by)) {
      const box = boxOf(this.span(next)), far = Math.abs((box.left + box.right) / 2 - middle);
      if (this.textOf[next] === start && Math.abs(box.top - here.top) < 4) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) >= 4) break;
      if (far < gap) [best, gap] = [next, far];
    }
    return best;
  }

  stepToMatch(by) {
    const js = this.columns.js_nats;
    const next = this.neighbour(Number(this.active.dataset.row), by, (row) => (this.filtered ? this.match[row] : js[row] > HIGH));
    if (next >= 0) this.focus(next, "center");
    else say("No further match");
  }

  hash(row) {
    return `#${this.prefix}t${this.packed.texts[this.textOf[row]].text}-p${this.columns.position[row]}`;
  }

  // The row a link names, or -1.
  rowOf(text, place) {
    const t = this.packed.texts.findIndex((entry) => entry.text === text);
    if (t < 0) return -1;
    for (let row = this.packed.starts[t]; row < this.packed.starts[t + 1]; row++) if (this.columns.position[row] === place) return row;
    return -1;
  }

  open(row) {
    if (!this.hit[this.textOf[row]]) this.reset();
    this.focus(row, "center");
    card.pin(this, row, this.span(row));
  }

  listen() {
    const texts = this.role("texts"), overview = this.role("overview");
    const rowAt = (event) => event.target.classList?.contains("k") ? Number(event.target.dataset.row) : -1;
    texts.addEventListener("pointerover", (event) => {
      const row = rowAt(event);
      // a card that was just closed by its button must not open again for the token that lay under the button
      if (event.pointerType === "mouse" && row >= 0 && performance.now() > card.quietUntil) card.show(this, row, event.target);
    });
    texts.addEventListener("pointerout", (event) => { if (event.pointerType === "mouse") card.hideSoon(); });
    texts.addEventListener("focusin", (event) => { if (rowAt(event) >= 0 && !card.pinned) card.show(this, rowAt(event), event.target); });
    texts.addEventListener("focusout", () => card.hideSoon());
    texts.addEventListener("click", (event) => {
      const row = rowAt(event);
      if (row < 0) return;
      if (card.pinned && card.row === row && card.map === this) { card.close(); return; }
      this.focus(row);
      card.pin(this, row, event.target);
    });
    texts.addEventListener("keydown", (event) => this.key(event, rowAt(event)));
    overview.addEventListener("pointermove", (event) => {
      const row = this.overviewRow(event);
      if (row < 0) card.hideSoon();
      else if (event.pointerType === "mouse") card.show(this, row, new DOMRect(event.clientX, event.clientY, 1, 1));
    });
    overview.addEventListener("pointerleave", () => card.hideSoon());
    overview.addEventListener("click", (event) => { const row = this.overviewRow(event); if (row >= 0) this.open(row); });
    this.role("color").addEventListener("change", (event) => this.setColor(event.target.value));
    this.role("sort").addEventListener("change", (event) => this.sort(event.target.value));
    this.root.querySelector(".filters").addEventListener("input", () => this.filter());
    this.role("reset").addEventListener("click", () => this.reset());
    this.role("more").addEventListener("click", () => { this.limit += 2 * PAGE; this.showTexts(); });
    this.role("all").addEventListener("click", () => { this.limit = Infinity; this.showTexts(); });
    this.role("next").addEventListener("click", () => this.stepToMatch(1));
    this.role("previous").addEventListener("click", () => this.stepToMatch(-1));
    document.addEventListener("themechange", () => this.drawOverview());
  }

  key(event, row) {
    if (row < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const t = this.textOf[row], { starts } = this.packed;
    const moves = {
      ArrowRight: () => this.neighbour(row, 1), ArrowLeft: () => this.neighbour(row, -1),
      ArrowDown: () => this.vertical(row, 1), ArrowUp: () => this.vertical(row, -1),
      Home: () => starts[t], End: () => starts[t + 1] - 1,
    };
    const deeds = {
      n: () => this.stepToMatch(1), p: () => this.stepToMatch(-1), c: () => copy(location.href.split("#")[0] + this.hash(row)),
      Enter: () => card.pin(this, row, event.target), " ": () => card.pin(this, row, event.target),
    };
    if (moves[event.key]) {
      const next = moves[event.key]();
      if (card.pinned) card.close();
      if (next >= 0) this.focus(next);
    } else if (deeds[event.key]) deeds[event.key]();
    else return;
    event.preventDefault();
  }
}

// --- the card: one element for the whole page ---------------------------------------------------------------------------

const card = {
  node: document.getElementById("card"), pinned: false, row: -1, map: null, at: null, timer: 0, quietUntil: 0, sheet: matchMedia("(max-width: 720px)"),

  // at: the token, or a rectangle on the overview.
  show(map, row, at) {
    clearTimeout(this.timer);
    if (this.pinned) return;
    if (this.map !== map || this.row !== row || this.node.hidden) this.node.replaceChildren(...describe(map, row));
    Object.assign(this, { map, row, at });
    this.node.hidden = false;
    this.place();
  },

  pin(map, row, at) {
    this.pinned = false;
    this.show(map, row, at);
    this.pinned = true;
    this.node.classList.add("pinned");
    history.replaceState(null, "", map.hash(row));
    const box = this.box();
    if (this.sheet.matches && box.bottom > innerHeight - this.node.offsetHeight) scrollBy(0, box.top - 90);
    this.place();
  },

  box() {
    return this.at instanceof DOMRect ? this.at : boxOf(this.at);
  },

  // Below the token, or above where there is more room, and gone while the token is out of sight; on a phone the style
  // sheet makes it a sheet at the bottom.
  place() {
    const box = this.box(), { offsetWidth: width, offsetHeight: height } = this.node, gap = 8;
    const below = box.bottom + gap + height <= innerHeight || box.top < innerHeight - box.bottom;
    const top = below ? Math.min(box.bottom + gap, Math.max(gap, innerHeight - height - gap)) : Math.max(gap, box.top - gap - height);
    this.node.style.top = `${top}px`;
    this.node.style.left = `${Math.max(gap, Math.min(box.left - 24, innerWidth - width - gap))}px`;
    this.node.classList.toggle("away", box.bottom < 0 || box.top > innerHeight);
  },

  hideSoon() {
    clearTimeout(this.timer);
    if (!this.pinned) this.timer = setTimeout(() => this.close(), 120);
  },

  close() {
    this.pinned = false;
    this.node.hidden = true;
    this.node.classList.remove("pinned");
  },
};

function describe(map, row) {
  const { columns, packed } = map, text = packed.texts[map.textOf[row]];
  const head = el("div", "card-head", el("strong", "piece", visible(map.piece(row))), el("span", "fine", "◆ emitted"));
  if (columns.class) head.append(el("span", `badge ${map.word("class", row)}`, map.word("class", row)));
  head.append(el("span", "fine", `text ${text.id} · position ${columns.position[row]}`));
  const link = Object.assign(el("button", "link", "Copy link"), { type: "button" });
  link.dataset.copy = location.href.split("#")[0] + map.hash(row);
  const close = Object.assign(el("button", "close", "×"), { type: "button" });
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", () => { map.active.focus({ preventScroll: true }); card.close(); card.quietUntil = performance.now() + 400; });
  head.append(el("span", "card-tools", link, close));
  const parts = [head];
  if (columns.swapped?.[row]) parts.push(el("p", "fine", "This token was taken from the other model."));
  if (columns.source) parts.push(el("p", "fine", `source: ${map.word("source", row)}`));
  if (columns.top_base_ids && columns.top_tuned_ids) parts.push(el("div", "laws", law(map, row, "base", "tuned"), law(map, row, "tuned", "base")));
  parts.push(scalars(map, row));
  if (columns.flow_1) parts.push(flows(columns, row));
  return parts;
}

// The top tokens of one model at a position, with what the other gives them; the emitted token is marked, or added below.
function law(map, row, side, other) {
  const { columns, packed } = map, own = packed.columns[`top_${side}_ids`].width, from = row * own;
  const theirs = packed.columns[`top_${other}_ids`].width;
  const theirTop = columns[`top_${other}_ids`].subarray(row * theirs, (row + 1) * theirs);
  const emitted = columns.token[row];
  const name = DATA.pair[side === "base" ? 0 : 1];
  const table = el("table", `law ${side}`, el("caption", "", el("span", `side ${side}`, name), name === side ? "" : el("span", "fine", ` ${side}`)));
  table.append(el("thead", "", el("tr", "", ...["", "token", "", "p", `p ${other}`, `rank ${other}`].map((title) => el("th", "", title)))));
  const body = el("tbody"), line = (rank, token, p, pOther, rankOther) => {
    const mine = token === emitted, bars = el("span", "bars", el("i", side), el("i", other));
    bars.children[0].style.width = `${100 * (p || 0) / most}%`;
    bars.children[1].style.width = `${100 * (pOther || 0) / most}%`;
    const tr = el("tr", mine ? "emitted" : "", el("td", "fine", rank), el("td", "", el("span", "piece", visible(packed.pieces[token])), mine ? el("span", "emitted-mark", " ◆") : ""),
      el("td", "", bars), el("td", "p", percent(p)), el("td", "", percent(pOther)), el("td", "fine", rankOther));
    body.append(tr);
  };
  const p = (name, at) => (columns[name] ? Math.exp(columns[name][at]) : NaN);
  const rankOf = (which) => (columns[`rank_${which}`] ? `${number(columns[`rank_${which}`][row] + 1)}` : "–");
  const most = Math.exp(Math.max(...["base", "tuned"].map((which) => columns[`top_${which}_logp`]?.[row * packed.columns[`top_${which}_ids`].width] ?? 0)));
  let found = false;
  for (let k = 0; k < own; k++) {
    const token = columns[`top_${side}_ids`][from + k], place = theirTop.indexOf(token);
    let rankOther = place >= 0 ? String(place + 1) : `> ${theirs}`;
    if (k === 0 && side === "tuned" && columns.rank_base_of_tuned_top1) rankOther = number(columns.rank_base_of_tuned_top1[row] + 1);
    if (token === emitted && columns[`rank_${other}`]) rankOther = rankOf(other);
    found ||= token === emitted;
    line(String(k + 1), token, p(`top_${side}_logp`, from + k), p(`top_${side}_logp_${other}`, from + k), rankOther);
  }
  if (!found) line(rankOf(side), emitted, p(`logp_${side}_nats`, row), p(`logp_${other}_nats`, row), rankOf(other));
  table.append(body);
  return table;
}

function scalars(map, row) {
  const { columns } = map, list = el("dl", "scalars");
  const add = (title, value, unit = "") => list.append(el("div", "", el("dt", "", title), el("dd", "", value, unit ? el("span", "fine", ` ${unit}`) : "")));
  for (const [name, title, unit] of FIGURES) if (columns[name]) add(title, number(columns[name][row]), unit);
  for (const side of ["base", "tuned"]) if (columns[`rank_${side}`]) add(`rank ◆, ${side}`, number(columns[`rank_${side}`][row] + 1));
  if (columns.rank_base_of_tuned_top1) add("base rank, tuned top", number(columns.rank_base_of_tuned_top1[row] + 1));
  if (columns.p_base_of_tuned_top1) add("base p, tuned top", percent(columns.p_base_of_tuned_top1[row]));
  for (const [name, packed] of Object.entries(map.packed.columns)) {
    if (!OWN_PLACE.has(name) && packed.width === 1) add(name.replace(/_/g, " "), packed.words ? map.word(name, row) : number(columns[name][row]));
  }
  return list;
}

// Mass that moved in (right) or out (left), by the rank the tokens have in the base model.
function flows(columns, row) {
  const bars = FLOWS.filter(([name]) => columns[name]).map(([name, title]) => {
    const moved = columns[name][row], bar = el("i", moved < 0 ? "out" : "in");
    bar.style.width = `${Math.min(50, 50 * Math.abs(moved))}%`;
    const shown = `${moved > 0 ? "+" : moved < 0 ? "−" : ""}${percent(Math.abs(moved)).replace("−", "")}`;
    return el("div", "flow", el("span", "fine", title), el("span", "flow-track", bar), el("strong", "", shown));
  });
  return el("div", "flows", el("span", "fine", "mass moved by base rank"), ...bars);
}

// --- start --------------------------------------------------------------------------------------------------------------

const maps = [];

function openLink() {
  const link = /^#(?:m(\d+)-)?t(-?\d+)-p(\d+)$/.exec(location.hash);
  const map = link && maps[Number(link[1] || 0)];
  const row = map ? map.rowOf(Number(link[2]), Number(link[3])) : -1;
  if (row >= 0) map.open(row);
}

async function start() {
  for (const root of document.querySelectorAll(".heatmap")) {
    const index = Number(root.dataset.map), packed = DATA.maps[index], names = Object.keys(packed.columns);
    const arrays = await Promise.all(names.map((name) => unpack(packed.columns[name])));
    maps[index] = new HeatMap(root, index, packed, Object.fromEntries(names.map((name, i) => [name, arrays[i]])));
  }
  openLink();
  document.documentElement.dataset.ready = "true";
}

addEventListener("hashchange", openLink);
addEventListener("keydown", (event) => { if (event.key === "Escape") card.close(); });
addEventListener("scroll", () => { if (!card.node.hidden) card.place(); }, { passive: true });
document.addEventListener("pointerdown", (event) => {
  if (card.pinned && !card.node.contains(event.target) && !event.target.classList?.contains("k")) card.close();
});
card.node.addEventListener("pointerenter", () => clearTimeout(card.timer));
card.node.addEventListener("pointerleave", () => card.hideSoon());
start();
