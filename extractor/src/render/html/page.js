"use strict";
// Draws the document in #data: no framework, nothing loaded, SVG only.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, which colour-blind people can tell apart
const CATEGORIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"];
// cividis, sampled: from little to much, the same order of lightness for every eye
const SCALE = ["#00224e", "#1c366b", "#434e6c", "#636875", "#838079", "#a79b73", "#cdb965", "#fee838"];

/* ---- elements ---- */

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  return fill(element, attributes, children);
}

function draw(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

function section(id, title, ...content) {
  const heading = make("h2", { id: id + "-title" }, title);
  const whole = make("section", { id, "aria-labelledby": id + "-title" }, heading, ...content);
  main.append(whole);
  document.getElementById("nav").append(make("a", { href: "#" + id }, title));
  return whole;
}

function table(caption, columns, rows) {
  const head = columns.map((c) => make("th", { scope: "col", class: c.number ? "number" : null }, c.title));
  const body = rows.map((row) =>
    make("tr", {}, row.map((cell, i) => make("td", { class: columns[i].number ? "number" : null }, cell))));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, head)), make("tbody", {}, body)));
}

const text = (title) => ({ title });
const number = (title) => ({ title, number: true });

function asTable(caption, columns, rows) {
  return make("details", {}, make("summary", {}, "The same as a table"), table(caption, columns, rows));
}

function facts(pairs) {
  const rows = pairs.filter(([, value]) => value != null && value !== "");
  return make("dl", {}, rows.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

/* ---- numbers ---- */

function count(n) {
  return Math.round(n).toLocaleString("en-US");
}

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1000; unit += 1; }
  return (unit === 0 ? String(n) : n.toPrecision(n < 10 ? 2 : 3)) + " " + units[unit];
}

function figure(x) {
  if (x == null) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e-3 && size < 1e5 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
}

const percent = (share) => (100 * share).toFixed(1) + " %";
const words = (name) => name.replaceAll("_", " ");

function quantile(sorted, share) {
  const at = (sorted.length - 1) * share;
  const low = Math.floor(at);
  return sorted[low] + (sorted[Math.ceil(at)] - sorted[low]) * (at - low);
}

/* ---- tensors ---- */

function nameOf(group, i) {
  let k = 0;
  return group.pattern.replace(/\{\}/g, () => group.numbers[k++][i]);
}

const at = (group, which, i) => (group[which] == null ? null : group.numbers[group[which]][i]);
const layerOf = (group, i) => at(group, "layer_at", i);
const expertOf = (group, i) => at(group, "expert_at", i);
const isExpert = (group) => group.expert_at != null;

function eachTensor(subject, visit) {
  for (const group of subject.groups) for (let i = 0; i < group.count; i += 1) visit(group, i);
}

/* ---- charts ---- */

function ticks(low, high, wanted) {
  const rough = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

function powers(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p += 1) found.push(10 ** p);
  return found;
}

/** Axes with their titles and units; `plot(x, y)` has the marks. */
function axes({ title, xTitle, yTitle, xs, ys, log, plot, height }) {
  const [width, tall, left, bottom, top, right] = [860, height || 320, 74, 46, 14, 16];
  const yTicks = log ? powers(ys[0], ys[1]) : ticks(ys[0], ys[1], 6);
  const [low, high] = [Math.min(ys[0], yTicks[0]), Math.max(ys[1], yTicks[yTicks.length - 1])];
  const scaled = (v) => (log ? Math.log10(v) : v);
  const y = (v) => tall - bottom - ((scaled(v) - scaled(low)) / (scaled(high) - scaled(low) || 1)) * (tall - bottom - top);
  const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (width - left - right);
  const grid = yTicks.map((t) => [
    draw("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
    draw("text", { class: "tick", x: left - 6, y: y(t) + 4, "text-anchor": "end" }, figure(t))]);
  const below = ticks(xs[0], xs[1], 12).filter(Number.isInteger).map((t) =>
    draw("text", { class: "tick", x: x(t), y: tall - bottom + 16, "text-anchor": "middle" }, String(t)));
  const names = [
    draw("text", { x: (left + width - right) / 2, y: tall - 8, "text-anchor": "middle" }, xTitle),
    draw("text", { transform: `translate(14 ${(tall - bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle)];
  return draw("svg", { viewBox: `0 0 ${width} ${tall}`, role: "img", "aria-label": title }, draw("title", {}, title),
    grid.flat(), below, names,
    draw("line", { class: "axis", x1: left, x2: width - right, y1: tall - bottom, y2: tall - bottom }),
    draw("line", { class: "axis", x1: left, x2: left, y1: top, y2: tall - bottom }), plot(x, y));
}

const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

function lines(series) {
  return (x, y) => series.map((s, n) => {
    const points = s.points.filter(([, v]) => v != null);
    const path = points.map(([a, b], i) => (i ? "L" : "M") + x(a).toFixed(1) + " " + y(b).toFixed(1)).join("");
    const colour = CATEGORIES[n % CATEGORIES.length];
    const dash = DASHES[Math.floor(n / CATEGORIES.length) % DASHES.length];
    const dots = points.map(([a, b]) => draw("circle", { cx: x(a), cy: y(b), r: 2.5, fill: colour }));
    return [draw("path", { d: path, fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }), dots];
  }).flat(2);
}

function legend(names) {
  return make("div", { class: "legend" }, names.map((name, n) =>
    make("span", {}, make("span", { class: "swatch", style: "background:" + CATEGORIES[n % CATEGORIES.length], "aria-hidden": "true" }), name)));
}

function shade(share) {
  const place = Math.max(0, Math.min(1, share)) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  const part = (colour, k) => parseInt(colour.slice(1 + 2 * k, 3 + 2 * k), 16);
  const mixed = [0, 1, 2].map((k) => Math.round(part(SCALE[low], k) + (part(SCALE[low + 1], k) - part(SCALE[low], k)) * (place - low)));
  return `rgb(${mixed.join(" ")})`;
}

/** A bar that says which shade means what. */
function key(low, high) {
  const steps = Array.from({ length: 24 }, (_, i) => draw("rect", { x: i * 8, y: 0, width: 8.5, height: 12, fill: shade(i / 23) }));
  return make("div", { class: "legend" }, low,
    draw("svg", { viewBox: "0 0 192 12", style: "width:12rem", role: "img", "aria-label": `from ${low} (dark) to ${high} (light)` }, steps), high);
}

/* ---- what it is ---- */

function publishedAs(subject) {
  const [match, known] = [subject.published, subject.info && subject.info.known];
  if (match) return { names: "", counts: "by counts and sizes: ", nearly: "nearly: " }[match.by] + match.repos.join(" or ");
  if (!known) return null;
  return (known.identical ? "" : "resembles ") + known.repo + " @ " + known.revision;
}

function identity(subject) {
  const info = subject.info;
  const from = subject.provenance;
  const revision = from && from.revision ? "@" + from.revision : "";
  const known = publishedAs(subject);
  const bytesOf = subject.groups.reduce((sum, g) => sum + g.bytes * g.count, 0);
  const tensors = subject.groups.reduce((sum, g) => sum + g.count, 0);
  return make("div", {}, make("h3", {}, subject.name), facts([
    ["What it is", subject.kind === "pack" ? "a pack" : "a checkpoint"],
    ["Family", subject.family || "unknown"],
    ["Published as", known || null],
    ["Origin", from && from.repo ? from.repo + revision : "not recorded"],
    ["Identity", info ? make("code", {}, "SHA-256 of manifest.json: " + info.manifest_sha256) : null],
    ["Written by", info ? info.written_by : null],
    ["Codec", info ? info.options.codec : null],
    ["Tensors", count(tensors) + " (experts one by one)"],
    ["Their bytes", bytes(bytesOf) + " (" + count(bytesOf) + ")"],
    ["Pack files", info ? `${bytes(info.stored_bytes)}, ${percent(info.ratio)} of that` : null],
    ["Left out", info && info.excluded.length ? info.excluded.map((e) => e.component).join(", ") : null],
  ]));
}

function componentsTable(subject) {
  const rows = new Map();
  eachTensor(subject, (g) => {
    const row = rows.get(g.component) || { tensors: 0, bytes: 0, values: 0 };
    row.tensors += 1; row.bytes += g.bytes; row.values += g.shape.reduce((n, side) => n * side, 1);
    rows.set(g.component, row);
  });
  const stored = (name) => {
    const found = subject.info && subject.info.components.find((c) => c.component === name);
    return found ? [bytes(found.stored_bytes), percent(found.stored_bytes / found.bytes)] : [];
  };
  const columns = [text("Component"), number("Tensors"), number("Parameters"), number("Bytes")];
  if (subject.info) columns.push(number("In the pack"), number("Ratio"));
  return table("Components of " + subject.name, columns, [...rows].map(([name, r]) =>
    [name, count(r.tensors), count(r.values), bytes(r.bytes), ...stored(name)]));
}

/* ---- audit and verification ---- */

const COMPLETENESS = {
  complete: ["good", "Complete: every tensor that its config.json requires is there, with its shape."],
  incomplete: ["bad", "Not complete: tensors that its config.json requires are missing, or have another shape."],
  not_known: ["warn", "Completeness is not known: nothing says which tensors this model must have."],
};

function findings(list) {
  if (!list.length) return make("p", { class: "good" }, "No findings.");
  const rows = list.map((f) => [
    make("span", { class: f.severity === "error" ? "bad" : "warn" }, f.severity),
    words(f.kind), make("code", {}, f.tensor || f.file || ""),
    [f.seen && "seen: " + f.seen, f.expected && "wanted: " + f.expected].filter(Boolean).join("; ")]);
  return table(`${count(list.length)} findings`, [text("Severity"), text("Kind"), text("Where"), text("What")], rows);
}

function verification(report) {
  const how = {
    quick: "its structure and what follows from the kept files; no weights were read",
    full: "every stored byte was hashed and the digest of every tensor compared",
    sums: "every stored byte was hashed, the digest of every tensor and of every file compared",
  }[report.mode];
  const states = report.files.map((f) => f.restorable);
  const restorable = states.filter((s) => s === "yes").length;
  const part = report.subset ? `Part ${report.subset[0]} of ${report.subset[1]} only. ` : "";
  return make("div", {},
    make("p", { class: report.ok ? "good" : "bad" }, report.ok ? "Verified: nothing is wrong." : "Verification failed."),
    make("p", {}, `${part}How: ${how}. ${count(report.checked.packs)} packs, ${count(report.checked.segments)} segments, ` +
      `${count(report.checked.tensors)} tensors, ${count(report.checked.files)} files of source/, ${bytes(report.checked.bytes)} read` +
      `${report.against ? "; compared with the checkpoint" : ""}.`),
    states.some((s) => s !== "not_checked")
      ? make("p", {}, `unpack gives ${count(restorable)} of ${count(states.length)} files of the checkpoint back, byte for byte.`) : null,
    findings(report.findings));
}

function audit() {
  const parts = data.subjects.map((s) => {
    const [mood, sentence] = COMPLETENESS[s.completeness];
    return make("div", {}, make("h3", {}, "Audit of " + s.name), make("p", { class: mood }, sentence),
      s.kind === "pack" ? make("p", { class: "quiet" }, "Derived from the kept config.json and shard headers while this page was written; no weights were read.") : null,
      findings(s.findings));
  });
  const report = data.verification;
  if (report) parts.push(make("div", {}, make("h3", {}, "Verification"), verification(report)));
  else if (data.subjects.some((s) => s.kind === "pack"))
    parts.push(make("p", { class: "quiet" }, "The weights were not verified for this page: segpack verify PACK --json > verify.json, then report --verification verify.json."));
  section("audit", "Audit and verification", ...parts);
}

/* ---- treemap ---- */

function tree(subject) {
  const root = { label: subject.name, raw: 0, stored: 0, children: new Map() };
  const child = (node, label) => {
    if (!node.children.has(label)) node.children.set(label, { label, raw: 0, stored: 0, children: new Map(), parent: node });
    return node.children.get(label);
  };
  const counted = new Set();
  eachTensor(subject, (g, i) => {
    const [layer, expert] = [layerOf(g, i), expertOf(g, i)];
    const path = [g.component, layer == null ? words(g.unit) : "layer " + layer];
    if (layer != null) path.push(expert == null ? words(g.unit) : "expert " + expert);
    let stored = g.bytes;
    if (subject.segments.length) {
      const segment = g.segments[i];
      stored = counted.has(segment) ? 0 : subject.segments[segment][1];
      counted.add(segment);
    }
    const kinds = [g.component, g.component, expert == null ? words(g.unit) : "experts"];
    const chain = path.reduce((nodes, label) => [...nodes, child(nodes[nodes.length - 1], label)], [root]);
    chain.forEach((node, depth) => { node.raw += g.bytes; node.stored += stored; node.kind = kinds[depth - 1]; });
  });
  return root;
}

/** Places in a rectangle, as square as they can be (Bruls, Huizing, van Wijk: Squarified Treemaps). */
function squarify(items, x, y, w, h) {
  const total = items.reduce((sum, i) => sum + i.size, 0);
  if (!items.length || !total) return [];
  const scale = (w * h) / total;
  const rest = items.map((i) => ({ ...i, area: i.size * scale })).sort((a, b) => b.area - a.area);
  const placed = [];
  const worst = (row, sum, side) => Math.max(...[row[0], row[row.length - 1]].map((r) =>
    Math.max((side * side * r.area) / (sum * sum), (sum * sum) / (side * side * r.area))));
  while (rest.length) {
    const side = Math.min(w, h);
    const row = [rest.shift()];
    let sum = row[0].area;
    while (rest.length && worst([...row, rest[0]], sum + rest[0].area, side) <= worst(row, sum, side)) {
      sum += rest[0].area; row.push(rest.shift());
    }
    const thick = sum / side;
    let along = 0;
    for (const r of row) {
      const length = r.area / thick;
      placed.push(w >= h ? { ...r, x, y: y + along, w: thick, h: length } : { ...r, x: x + along, y, w: length, h: thick });
      along += length;
    }
    if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
  }
  return placed;
}

function treemap(subject) {
  const root = tree(subject);
  const packed = subject.segments.length > 0;
  let shown = root;
  const sizeBy = make("select", { onchange: () => paint() }, make("option", { value: "raw" }, "bytes of tensors"),
    packed ? make("option", { value: "stored" }, "bytes in the pack") : null);
  const colourBy = make("select", { onchange: () => paint() }, packed ? make("option", { value: "ratio" }, "compressibility") : null,
    make("option", { value: "kind" }, "what it is"));
  const up = make("button", { type: "button", onclick: () => { if (shown.parent) { shown = shown.parent; paint(true); } } }, "Up");
  const where = make("strong", {});
  const reading = make("p", { class: "reading quiet", "aria-live": "polite" });
  const holder = make("div", {});
  const alternative = make("div", {});
  const keyHolder = make("div", {});

  const kinds = new Map();
  const kindOf = (node) => {
    if (!kinds.has(node.kind)) kinds.set(node.kind, kinds.size);
    return kinds.get(node.kind);
  };
  const ratio = (node) => node.stored / (node.raw || 1);
  const bounds = () => {
    const all = [];
    const visit = (node) => { if (node.children.size) node.children.forEach(visit); else all.push(ratio(node)); };
    visit(root);
    all.sort((a, b) => a - b);
    return [quantile(all, 0.01), quantile(all, 0.99)];
  };
  const [low, high] = bounds();
  const colour = (node) => (colourBy.value === "ratio"
    ? shade((ratio(node) - low) / (high - low || 1)) : CATEGORIES[kindOf(node) % CATEGORIES.length]);
  const sentence = (node) => `${node.label}: ${bytes(node.raw)}, ${percent(node.raw / root.raw)} of the whole` +
    (packed ? `; ${bytes(node.stored)} in the pack (${percent(ratio(node))})` : "");

  function cell(place) {
    const node = place.node;
    const inner = node.children.size
      ? squarify([...node.children.values()].map((n) => ({ node: n, size: n[sizeBy.value] })), place.x, place.y, place.w, place.h) : [];
    const rects = (inner.length ? inner : [place]).map((p) =>
      draw("rect", { class: "cell", x: p.x, y: p.y, width: Math.max(p.w, 0), height: Math.max(p.h, 0), fill: colour(p.node) }));
    const frame = draw("rect", { class: "cell", x: place.x, y: place.y, width: place.w, height: place.h, fill: "none", style: "stroke-width:2" });
    const fits = place.w > 7 * node.label.length + 14 && place.h > 22;
    const label = fits ? [
      draw("rect", { x: place.x + 3, y: place.y + 3, width: 7 * node.label.length + 8, height: 17, fill: "var(--back)", opacity: 0.82, rx: 3 }),
      draw("text", { x: place.x + 7, y: place.y + 16 }, node.label)] : [];
    const open = () => { if (node.children.size) { shown = node; paint(true); } };
    return draw("g", { tabindex: -1, role: node.children.size ? "button" : "img", "aria-label": sentence(node), onclick: open,
      onmouseenter: () => { reading.textContent = sentence(node); }, onfocus: () => { reading.textContent = sentence(node); },
      onkeydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); open(); } } }, draw("title", {}, sentence(node)), rects, frame, label);
  }

  function move(event, cells) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" || event.key === "Backspace") { event.preventDefault(); up.click(); return; }
    if (!step) return;
    event.preventDefault();
    const next = cells[Math.max(0, Math.min(cells.length - 1, cells.indexOf(document.activeElement) + step))];
    cells.forEach((c) => c.setAttribute("tabindex", c === next ? 0 : -1));
    next.focus();
  }

  function paint(focus) {
    kinds.clear();
    const children = [...shown.children.values()].sort((a, b) => b[sizeBy.value] - a[sizeBy.value]);
    const cells = squarify(children.map((n) => ({ node: n, size: n[sizeBy.value] })), 0, 0, 860, 430).map(cell);
    if (cells[0]) cells[0].setAttribute("tabindex", 0);
    const title = `Treemap of ${shown.label} by ${sizeBy.value === "raw" ? "bytes of tensors" : "bytes in the pack"}`;
    holder.replaceChildren(draw("svg", { viewBox: "0 0 860 430", role: "group", "aria-label": title + ". Arrow keys move, Enter opens, Escape goes up.",
      onkeydown: (e) => move(e, cells) }, cells));
    up.disabled = !shown.parent;
    where.textContent = path(shown).join(" › ");
    reading.textContent = sentence(shown);
    const columns = [text("What"), number("Bytes"), number("Share")];
    if (packed) columns.push(number("In the pack"), number("Ratio"));
    alternative.replaceChildren(asTable(title, columns, children.map((n) => [n.label, bytes(n.raw), percent(n.raw / shown.raw),
      ...(packed ? [bytes(n.stored), percent(ratio(n))] : [])])));
    keyHolder.replaceChildren(colourBy.value === "ratio" ? key(percent(low), percent(high)) : legend([...kinds.keys()].slice(0, 8)));
    if (focus && cells[0]) cells[0].focus();
  }
  const path = (node) => (node.parent ? [...path(node.parent), node.label] : [node.label]);
  paint();
  return make("div", {}, make("h3", {}, subject.name), make("div", { class: "controls" }, up, where,
    make("label", {}, "Area:", sizeBy), make("label", {}, "Colour:", colourBy)), make("figure", {}, holder,
    make("figcaption", {}, "Area is size; click or press Enter to look inside.")), keyHolder, reading, alternative);
}

/* ---- layers ---- */

function layersChart(subject) {
  if (!subject.segments.length) return null;
  const layers = new Map();
  eachTensor(subject, (g, i) => {
    const [layer, expert] = [layerOf(g, i), expertOf(g, i)];
    if (layer == null) return;
    const name = g.component + (expert == null ? ", rest" : ", experts");
    if (!layers.has(name)) layers.set(name, new Map());
    const segments = layers.get(name);
    if (!segments.has(layer)) segments.set(layer, new Set());
    segments.get(layer).add(g.segments[i]);
  });
  const series = [...layers].map(([name, by]) => ({ name, points: [...by].sort((a, b) => a[0] - b[0]).map(([layer, set]) => {
    const sums = [...set].reduce(([raw, stored], s) => [raw + subject.segments[s][0], stored + subject.segments[s][1]], [0, 0]);
    return [layer, sums[1] / sums[0]];
  }) }));
  if (!series.length) return null;
  const all = series.flatMap((s) => s.points);
  const title = "Compressibility of each layer: bytes in the pack for each byte of tensors";
  const xs = [0, Math.max(...all.map((p) => p[0]))];
  const values = all.map((p) => p[1]);
  const ys = [Math.min(...values), Math.max(...values, Math.min(...values) + 0.01)];
  return make("div", {}, make("h3", {}, "Compressibility by layer: " + subject.name), make("figure", {},
    axes({ title, xTitle: "layer", yTitle: "pack bytes / tensor bytes", xs, ys, plot: lines(series) }), make("figcaption", {}, title)),
    legend(series.map((s) => s.name)),
    asTable(title, [text("Part"), number("Layer"), number("Ratio")], series.flatMap((s) => s.points.map(([l, r]) => [s.name, String(l), percent(r)]))));
}

/* ---- validation ---- */

function validation() {
  const report = data.validation;
  if (!report) return;
  const verdict = { inside: ["good", "Everything that is judged is within tolerance."], outside: ["bad", "Something is out of tolerance."],
    foreign: ["bad", "The trace belongs to another checkpoint; nothing was run."], not_judged: ["warn", "Nothing of the trace can be judged."] }[report.verdict];
  const own = data.subjects.some((s) => s.info && s.info.manifest_sha256 === report.manifest_sha256);
  const byQuantity = new Map();
  for (const row of report.values) {
    if (row.layer == null || !(row.max_abs > 0)) continue;
    if (!byQuantity.has(row.quantity)) byQuantity.set(row.quantity, []);
    byQuantity.get(row.quantity).push([row.layer, row.max_abs]);
  }
  const series = [...byQuantity].map(([name, points]) => ({ name: words(name), points }));
  const content = [make("p", { class: verdict[0] }, verdict[1]),
    own ? null : make("p", { class: "bad" }, "This validation is of another pack than those on this page: " + report.manifest_sha256),
    make("p", {}, `Compared with ${report.reference_name} (${report.reference}), computed in ${report.compute}, ${count(report.prompts.length)} prompts` +
      (report.tolerance == null ? "." : `; ${figure(report.tolerance)} is the largest difference of logits that is allowed.`))];
  if (series.length) {
    const all = series.flatMap((s) => s.points);
    const title = "Largest absolute difference from the reference, by layer";
    const ys = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
    content.push(make("figure", {}, axes({ title, xTitle: "layer", yTitle: "largest absolute difference", xs: [0, Math.max(...all.map((p) => p[0]))], ys, log: true, plot: lines(series) }),
      make("figcaption", {}, title + " (logarithmic; differences of zero are not drawn)")), legend(series.map((s) => s.name)));
  }
  content.push(asTable("Differences from the reference", [text("Quantity"), number("Layer"), number("Values"), number("Largest"), number("Mean"), text("Verdict")],
    report.values.map((r) => [words(r.quantity), r.layer == null ? "–" : String(r.layer), count(r.values), figure(r.max_abs), figure(r.mean_abs), r.wrong ? "wrong" : ""])));
  if (report.stages && report.stages.length) content.push(asTable("Stages", [text("Stage"), number("Number"), number("Values"), number("Largest"), number("Allowed"), text("Verdict")],
    report.stages.map((r) => [words(r.stage), r.number == null ? "–" : String(r.number), count(r.values), figure(r.max_abs), figure(r.max_allowed), r.ok ? "inside" : "outside"])));
  content.push(table("Choices", [text("Choice"), number("Layer"), number("Compared"), number("Equal"), number("Excused")],
    report.choices.filter((c) => c.layer == null || c.equal !== c.compared).map((c) => [words(c.choice), c.layer == null ? "–" : String(c.layer), count(c.compared), count(c.equal), count(c.excused)])));
  content.push(findings(report.findings));
  section("validation", "Validation", ...content);
}

/* ---- heat map ---- */

/** Rows by columns of shades, read by pointer and by arrow keys. */
function heatMap({ title, rowTitle, columnTitle, rows, columns, value, say }) {
  const [left, top, bottom] = [60, 8, 40];
  const wide = Math.max(3, Math.min(14, 780 / columns));
  const tall = Math.max(5, Math.min(16, 420 / rows.length));
  const [width, height] = [left + columns * wide + 10, top + rows.length * tall + bottom];
  const most = Math.max(1e-30, ...rows.map((_, r) => Math.max(...Array.from({ length: columns }, (_, c) => value(r, c) ?? 0))));
  const cells = rows.map((_, r) => Array.from({ length: columns }, (_, c) =>
    draw("rect", { x: left + c * wide, y: top + r * tall, width: wide + 0.3, height: tall + 0.3, fill: shade((value(r, c) ?? 0) / most) })));
  const cursor = draw("rect", { width: wide, height: tall, fill: "none", stroke: "var(--focus)", "stroke-width": 2, visibility: "hidden" });
  const reading = make("p", { class: "reading quiet", "aria-live": "polite" }, "Point at a cell, or move with the arrow keys.");
  let place = [0, 0];
  const go = (r, c) => {
    place = [Math.max(0, Math.min(rows.length - 1, r)), Math.max(0, Math.min(columns - 1, c))];
    fill(cursor, { x: left + place[1] * wide, y: top + place[0] * tall, visibility: "visible" }, []);
    reading.textContent = say(...place);
  };
  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const every = Math.ceil(12 / tall);
  const labels = rows.map((name, r) => (r % every ? null : draw("text", { class: "tick", x: left - 6, y: top + r * tall + tall / 2 + 4, "text-anchor": "end" }, String(name))));
  const below = ticks(0, columns - 1, 10).filter(Number.isInteger).map((c) =>
    draw("text", { class: "tick", x: left + (c + 0.5) * wide, y: top + rows.length * tall + 14, "text-anchor": "middle" }, String(c)));
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width:${width * 1.3}px`, tabindex: 0, role: "application", "aria-label": title + ". Arrow keys move from cell to cell.",
    onkeydown: (e) => { const step = keys[e.key]; if (step) { e.preventDefault(); go(place[0] + step[0], place[1] + step[1]); } },
    onmousemove: (e) => {
      const box = svg.getBoundingClientRect();
      const [px, py] = [((e.clientX - box.left) * width) / box.width, ((e.clientY - box.top) * height) / box.height];
      const [r, c] = [Math.floor((py - top) / tall), Math.floor((px - left) / wide)];
      if (r >= 0 && r < rows.length && c >= 0 && c < columns) go(r, c);
    } }, draw("title", {}, title), cells.flat(), labels, below,
    draw("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, columnTitle),
    draw("text", { transform: `translate(14 ${(height - bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, rowTitle), cursor);
  return make("div", {}, make("div", { class: "scroll" }, svg), key("0", figure(most)), reading);
}

/** Says where routers were restricted: such a run is none of the model. */
function restrictedNote(report) {
  const layers = Object.keys(report.restricted_experts ?? {});
  if (layers.length === 0) return [];
  return [make("p", {}, make("strong", {}, `Not the model: the routers of ${count(layers.length)} layers were restricted to some of their experts.`))];
}

function experts() {
  const report = data.experts;
  if (!report) return;
  const columns = report.experts;
  const total = report.layers.map((l) => l.uses.reduce((a, b) => a + b, 0));
  const title = `Uses of each expert in ${count(report.passes)} forward passes`;
  const never = report.layers.reduce((n, l) => n + l.uses.filter((u) => u === 0).length, 0);
  const [hits, misses] = [report.layers.reduce((n, l) => n + l.hits, 0), report.layers.reduce((n, l) => n + l.misses, 0)];
  const busiest = report.layers.flatMap((l) => l.uses.map((uses, expert) => ({ layer: l.layer, expert, uses }))).sort((a, b) => b.uses - a.uses).slice(0, 20);
  section("experts", "Use of experts",
    ...restrictedNote(report),
    make("p", {}, `${title}. ${count(never)} of ${count(report.layers.length * columns)} experts were never used. Of ${count(hits + misses)} uses, ${percent(hits / Math.max(1, hits + misses))} found the expert in memory.`),
    heatMap({ title, rowTitle: "layer", columnTitle: "expert", rows: report.layers.map((l) => l.layer), columns,
      value: (r, c) => report.layers[r].uses[c], say: (r, c) => `layer ${report.layers[r].layer}, expert ${c}: ${count(report.layers[r].uses[c])} uses, ${percent(report.layers[r].uses[c] / Math.max(1, total[r]))} of the layer's` }),
    asTable("Each layer", [number("Layer"), number("Uses"), number("Never used"), number("In memory"), number("Loaded")],
      report.layers.map((l, r) => [String(l.layer), count(total[r]), count(l.uses.filter((u) => u === 0).length), count(l.hits), count(l.misses)])),
    table("The experts that were used most", [number("Layer"), number("Expert"), number("Uses")], busiest.map((b) => [String(b.layer), String(b.expert), count(b.uses)])));
}

/* ---- values ---- */

function expertNorms(subject) {
  const norms = new Map();
  eachTensor(subject, (g, i) => {
    if (!isExpert(g) || !g.values || g.values.rms[i] == null) return;
    const place = `${g.component} ${layerOf(g, i)} ${expertOf(g, i)}`;
    const entry = norms.get(place) || { component: g.component, layer: layerOf(g, i), expert: expertOf(g, i), sum: 0 };
    entry.sum += g.values.rms[i] ** 2 * g.shape.reduce((n, side) => n * side, 1);
    norms.set(place, entry);
  });
  return [...norms.values()].map((n) => ({ ...n, norm: Math.sqrt(n.sum) }));
}

function boxes(byLayer) {
  return (x, y) => byLayer.map(([layer, sorted]) => {
    const q = (share) => y(quantile(sorted, share));
    return [draw("line", { class: "axis", x1: x(layer), x2: x(layer), y1: q(0), y2: q(1) }),
      draw("rect", { x: x(layer) - 5, y: q(0.75), width: 10, height: Math.max(1, q(0.25) - q(0.75)), fill: CATEGORIES[0] }),
      draw("line", { x1: x(layer) - 6, x2: x(layer) + 6, y1: q(0.5), y2: q(0.5), stroke: "var(--text)", "stroke-width": 2 })];
  }).flat();
}

function normsChart(subject) {
  const norms = expertNorms(subject);
  const parts = [];
  for (const component of new Set(norms.map((n) => n.component))) {
    const own = norms.filter((n) => n.component === component);
    const byLayer = [...new Set(own.map((n) => n.layer))].sort((a, b) => a - b)
      .map((layer) => [layer, own.filter((n) => n.layer === layer).map((n) => n.norm).sort((a, b) => a - b)]);
    const outliers = own.map((n) => {
      const peers = byLayer.find(([layer]) => layer === n.layer)[1];
      const spread = quantile(peers, 0.75) - quantile(peers, 0.25);
      return { ...n, median: quantile(peers, 0.5), far: Math.abs(n.norm - quantile(peers, 0.5)) / (spread || 1e-30), many: peers.length };
    }).filter((n) => n.many >= 4 && n.far > 3).sort((a, b) => b.far - a.far).slice(0, 20);
    const all = own.map((n) => n.norm);
    const title = `Norms of the experts of ${component} by layer: all of them, the middle half, the median`;
    parts.push(make("figure", {}, axes({ title, xTitle: "layer", yTitle: "norm of the expert's weights", xs: [byLayer[0][0] - 0.5, byLayer[byLayer.length - 1][0] + 0.5],
      ys: [Math.min(...all), Math.max(...all)], plot: boxes(byLayer) }), make("figcaption", {}, title)),
      asTable(title, [number("Layer"), number("Experts"), number("Smallest"), number("Median"), number("Largest")],
        byLayer.map(([l, s]) => [String(l), count(s.length), figure(s[0]), figure(quantile(s, 0.5)), figure(s[s.length - 1])])),
      outliers.length ? table("Experts whose norm is more than three interquartile ranges from their layer's median", [number("Layer"), number("Expert"), number("Norm"), number("Median of the layer")],
        outliers.map((o) => [String(o.layer), String(o.expert), figure(o.norm), figure(o.median)])) : make("p", { class: "quiet" }, `No expert of ${component} is more than three interquartile ranges from its layer's median.`));
  }
  return parts;
}

function values() {
  const subject = data.subjects.find((s) => s.groups.some((g) => g.values));
  if (!subject) return;
  const rows = [];
  eachTensor(subject, (g, i) => {
    const v = g.values;
    if (v && (v.not_finite[i] > 0 || v.of_peers[i] >= 5 || (v.of_peers[i] != null && v.of_peers[i] <= 0.2))) rows.push([g, i]);
  });
  rows.sort(([a, i], [b, j]) => (b.values.of_peers[j] ?? 1e9) - (a.values.of_peers[i] ?? 1e9));
  section("values", "Values", ...normsChart(subject), rows.length ? table("Tensors whose largest value is far from that of their peers, or that hold NaN or infinities",
    [text("Tensor"), number("Root mean square"), number("Largest magnitude"), number("Of its peers'"), number("Not finite")],
    rows.slice(0, 50).map(([g, i]) => [make("code", {}, nameOf(g, i)), figure(g.values.rms[i]), figure(g.values.max_abs[i]), figure(g.values.of_peers[i]), count(g.values.not_finite[i])])) :
    make("p", { class: "good" }, "No tensor holds NaN or infinities, and none is far from its peers."));
}

/* ---- forecast ---- */

function forecast(subject) {
  const model = subject.decoder;
  if (!model) return;
  const own = subject.groups.filter((g) => g.component === model.component);
  const sum = (groups) => groups.reduce((n, g) => n + g.bytes * g.count, 0);
  const routed = own.filter(isExpert);
  const dense = sum(own.filter((g) => !isExpert(g)));
  const table_ = sum(own.filter((g) => g.role === "embedding"));
  const tied = !own.some((g) => g.role === "lm_head");
  const expertBytes = sum(routed);
  const perToken = expertBytes * (model.experts_per_token / model.experts);
  const touched = dense - (tied ? 0 : table_) + perToken;
  const stored = subject.segments.length ? routed.reduce((all, g) => { g.segments.forEach((s) => all.add(s)); return all; }, new Set()) : null;
  const ratio = stored ? [...stored].reduce((n, s) => n + subject.segments[s][1], 0) / expertBytes : 1;
  const field = (value, step) => make("input", { type: "number", min: step, step, value, oninput: () => paint() });
  const [bandwidth, drive] = [field(25, 1), field(2, 0.1)];
  const holder = make("div", {});
  const at = (memory) => {
    const share = Math.max(0, Math.min(1, (memory - dense) / expertBytes));
    const seconds = touched / (bandwidth.value * 1e9) + ((1 - share) * perToken * ratio) / (drive.value * 1e9);
    return { share, rate: memory < dense + perToken / Math.max(1, model.layers) ? null : 1 / seconds };
  };
  const whole = (dense + expertBytes) / 1e9;
  // of a small model parts of a GB
  const unit = whole < 1 ? 10 ** Math.floor(Math.log10(whole)) : 1;
  const sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048].map((n) => n * unit).filter((gb) => gb < whole * 2 && gb > dense / 1e9);
  // on paper there are no fields: the table says what it is for
  const caption = () => `Forecast: computed, not measured, for ${bandwidth.value} GB/s of memory and ${drive.value} GB/s of the drive`;
  const paint = () => holder.replaceChildren(table(caption(), [number("Memory for weights"), number("Experts in memory"), number("Tokens per second, at most")],
    sizes.map((gb) => { const f = at(gb * 1e9); return [bytes(gb * 1e9), percent(f.share), f.rate == null ? "does not fit" : figure(f.rate)]; })));
  paint();
  section("forecast", "Memory and speed",
    make("p", {}, `A token needs ${bytes(touched)} of the ${bytes(dense + expertBytes)} of ${model.component}: ${bytes(dense)} that every token uses stays in memory, and ${model.experts_per_token} of ${model.experts} experts of each layer are chosen.`),
    make("div", { class: "controls" }, make("label", {}, "Memory bandwidth, GB/s", bandwidth), make("label", {}, "Drive, GB/s", drive)), holder,
    make("p", { class: "quiet" }, "Bytes touched over memory bandwidth, plus bytes of experts that are not in memory over the drive's rate, as if every expert were as likely as another. Real routing is less even, which helps; computing and decoding take time, which does not. Keys and values of the context come on top."));
}

/* ---- differences ---- */

function differences() {
  const diff = data.diff;
  if (!diff) return;
  const changed = diff.groups.filter((g) => g.tensors.added + g.tensors.removed + g.tensors.changed > 0);
  const moved = (g) => (g.moved ? [figure(g.moved.max_abs), figure(g.moved.relative_rms)] : ["–", "–"]);
  section("diff", "Differences", make("p", { class: diff.equal ? "good" : "warn" }, diff.equal ? "The two are equal." :
    `${count(diff.tensors.changed)} tensors changed, ${count(diff.tensors.added)} only in the second, ${count(diff.tensors.removed)} only in the first, ${count(diff.tensors.equal)} equal.`),
    changed.length ? table("Tensors that differ", [text("Component"), number("Layer"), text("Role"), number("Changed"), number("Added"), number("Removed"), number("Largest change"), number("Relative RMS")],
      changed.slice(0, 400).map((g) => [g.component, g.layer == null ? "–" : String(g.layer), words(g.role), count(g.tensors.changed), count(g.tensors.added), count(g.tensors.removed), ...moved(g)])) : null,
    changed.length > 400 ? make("p", { class: "quiet" }, `and ${count(changed.length - 400)} more rows: segpack diff --json has them all.`) : null,
    diff.changed_files.length ? table("Files that differ", [text("File"), text("Change"), number("First"), number("Second")],
      diff.changed_files.map((f) => [make("code", {}, f.path), f.change, f.a_length == null ? "–" : bytes(f.a_length), f.b_length == null ? "–" : bytes(f.b_length)])) : null);
}

/* ---- all tensors ---- */

function tensors() {
  const PAGE = 100;
  let [subject, page, order, down] = [data.subjects[0], 0, "name", false];
  const choose = (title, list) => make("select", { "aria-label": title, onchange: () => paint(true) }, make("option", { value: "" }, "all " + title), list.map((v) => make("option", { value: v }, v)));
  const all = (which) => [...new Set(data.subjects.flatMap((s) => s.groups.map((g) => g[which])))].sort();
  const search = make("input", { type: "search", placeholder: "part of a name, or of a SHA-256", "aria-label": "Search tensors", oninput: () => paint(true) });
  const filters = { component: choose("components", all("component")), role: choose("roles", all("role")), dtype: choose("dtypes", all("dtype")) };
  const which = make("select", { "aria-label": "Of which", onchange: (e) => { subject = data.subjects[e.target.value]; paint(true); } }, data.subjects.map((s, i) => make("option", { value: i }, s.name)));
  const status = make("p", { "aria-live": "polite" });
  const holder = make("div", {});
  const [before, after] = [-1, 1].map((step) => make("button", { type: "button", onclick: () => { page += step; paint(); } }, step < 0 ? "Previous" : "Next"));
  const keys = { name: (t) => t.name, bytes: (t) => t.group.bytes };

  function matching() {
    const wanted = search.value.trim().toLowerCase();
    const groups = subject.groups.filter((g) => Object.entries(filters).every(([k, s]) => !s.value || g[k] === s.value));
    const found = [];
    for (const group of groups) for (let i = 0; i < group.count; i += 1) {
      const name = nameOf(group, i);
      if (!wanted || name.toLowerCase().includes(wanted) || (group.sha256[i] || "").startsWith(wanted)) found.push({ group, i, name });
    }
    const collator = new Intl.Collator("en", { numeric: true });
    const by = keys[order];
    found.sort((a, b) => (order === "name" ? collator.compare(a.name, b.name) : by(a) - by(b) || collator.compare(a.name, b.name)));
    return down ? found.reverse() : found;
  }
  const sorted = (title, name, numeric) => make("th", { scope: "col", class: numeric ? "number" : null, "aria-sort": order === name ? (down ? "descending" : "ascending") : "none" },
    make("button", { type: "button", onclick: () => { down = order === name && !down; order = name; paint(true); } }, title + (order === name ? (down ? " ▼" : " ▲") : "")));
  function paint(first) {
    if (first) page = 0;
    const found = matching();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.max(0, Math.min(pages - 1, page));
    before.disabled = page === 0; after.disabled = page === pages - 1;
    const total = found.reduce((n, t) => n + t.group.bytes, 0);
    status.textContent = `${count(found.length)} tensors, ${bytes(total)}; page ${page + 1} of ${pages}`;
    const rows = found.slice(page * PAGE, (page + 1) * PAGE).map(({ group: g, i, name }) => make("tr", {},
      make("td", {}, make("code", {}, name)), make("td", {}, g.component), make("td", {}, words(g.role)), make("td", {}, g.dtype),
      make("td", {}, g.shape.join(" × ") || "scalar"), make("td", { class: "number" }, count(g.bytes)), make("td", {}, make("code", {}, g.sha256[i] || ""))));
    const head = make("tr", {}, sorted("Name", "name"), ["Component", "Role", "Dtype", "Shape"].map((t) => make("th", { scope: "col" }, t)), sorted("Bytes", "bytes", true), make("th", { scope: "col" }, "SHA-256 begins"));
    holder.replaceChildren(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Tensors" }, make("table", {}, make("thead", {}, head), make("tbody", {}, rows))));
  }
  paint(true);
  section("tensors", "Tensors", make("div", { class: "controls" }, search, data.subjects.length > 1 ? which : null, ...Object.values(filters), before, after), status, holder);
}

/* ---- the page ---- */

function theme() {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });
}

theme();
main.querySelector("noscript")?.remove();
document.getElementById("subtitle").textContent = data.subjects.map((s) => s.family || "unknown family").filter((f, i, all) => all.indexOf(f) === i).join(", ");
section("identity", "What it is", make("div", { class: data.subjects.length > 1 ? "two" : null }, data.subjects.map(identity)), ...data.subjects.map(componentsTable));
audit();
differences();
section("sizes", "Sizes", ...data.subjects.map(treemap), ...data.subjects.map(layersChart));
validation();
experts();
values();
forecast(data.subjects[0]);
tensors();
