"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const axes = Object.fromEntries(data.axes.map((axis) => [axis.name, axis]));
  const free = data.axes.filter((axis) => axis.scale !== "fixed");
  const colours = Object.fromEntries(data.regimes.map((regime) => [regime.name, regime.colour]));
  const names = data.regimes.map((regime) => regime.name);
  const count = data.points.number.length;
  const column = data.points;
  const lattice = {
    shape: data.lattice.shape,
    stable: decoded(data.lattice.stable),
    divergent: decoded(data.lattice.divergent),
  };
  const MARGIN = { left: 74, right: 14, top: 12, bottom: 52 };
  const MARK = 5;
  const REACH = 14; // pixels around a point that count as pointing at it
  const SURE = 0.8;
  const state = { view: data.views[0], slice: 0, shown: null, box: null };

  // ------------------------------------------------------------------ small helpers

  function decoded(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const steps = data.lattice.steps;
    return Float64Array.from({ length: bytes.length / 2 }, (_, i) =>
      logit((view.getUint16(2 * i, true) + 0.5) / (steps + 1)));
  }

  // Probabilities are kept as logits: these run evenly across a boundary, where a probability jumps
  // from one lattice position to the next, so that lines between positions stay smooth.
  function logit(p) {
    return Math.log(p / (1 - p));
  }

  function probability(value) {
    return 1 / (1 + Math.exp(-value));
  }

  /** An element with text as text: nothing here is ever parsed as markup. */
  function html(tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function svg(tag, attributes, parent, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  const spaced = (name) => name.replaceAll("_", " ");

  function shown(value) {
    if (value === null || value === undefined) return "not measured";
    if (typeof value !== "number") return String(value);
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) {
      return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    }
    return String(Number(value.toPrecision(4)));
  }

  // ------------------------------------------------------------------ coordinates

  /** Place along an axis: 0 to 1 over its range, a level of its own below for an extra zero. */
  function unit(axis, value) {
    if (axis.zero && value === 0) return data.zero;
    if (axis.scale === "log") return Math.log(value / axis.low) / Math.log(axis.high / axis.low);
    return (value - axis.low) / (axis.high - axis.low);
  }

  function valueAt(axis, place) {
    if (axis.zero && place < data.zero / 2) return 0;
    if (axis.scale === "log") return axis.low * (axis.high / axis.low) ** place;
    return axis.low + place * (axis.high - axis.low);
  }

  /** Where an axis begins: below its range where there is a level at zero. */
  const start = (axis) => (axis.zero ? 2 * data.zero : 0);

  /** Lattice position of a place; null in the gap between the level at zero and the range. */
  function position(axis, place) {
    const steps = lattice.shape[free.indexOf(axis)] - 1 - (axis.zero ? 1 : 0);
    if (axis.zero && place < 0) return place < data.zero / 2 ? 0 : null;
    return Math.min(Math.max(place, 0), 1) * steps + (axis.zero ? 1 : 0);
  }

  /** Place of a lattice position. */
  function placeOf(axis, index) {
    const steps = lattice.shape[free.indexOf(axis)] - 1 - (axis.zero ? 1 : 0);
    if (axis.zero && index === 0) return data.zero;
    return (index - (axis.zero ? 1 : 0)) / steps;
  }

  // ------------------------------------------------------------------ probabilities

  /** Logits of both probabilities on the plane that is looked at: rows go up, columns across. */
  function plane() {
    const strides = lattice.shape.map((_, i) =>
      lattice.shape.slice(i + 1).reduce((a, b) => a * b, 1));
    const at = (name) => free.findIndex((axis) => axis.name === name);
    const { across, up, along } = state.view;
    const offset = along ? state.slice * strides[at(along)] : 0;
    const columns = lattice.shape[at(across)];
    const rows = up ? lattice.shape[at(up)] : 1;
    const stable = new Float64Array(rows * columns);
    const divergent = new Float64Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < columns; i++) {
        const from = offset + i * strides[at(across)] + (up ? row * strides[at(up)] : 0);
        stable[row * columns + i] = lattice.stable[from];
        divergent[row * columns + i] = lattice.divergent[from];
      }
    }
    return { stable, divergent, rows, columns };
  }

  /** Value between four lattice positions. */
  function between(values, columns, x, y) {
    const i = Math.floor(x), j = Math.floor(y);
    const right = x > i ? 1 : 0, above = y > j ? columns : 0;
    const from = j * columns + i, s = x - i, t = y - j;
    return (1 - t) * ((1 - s) * values[from] + s * values[from + right]) +
      t * ((1 - s) * values[from + above] + s * values[from + above + right]);
  }

  /** Probabilities of the three regimes at a place of the plane; null in a gap. */
  function regimesAt(found, across, up) {
    const x = position(axes[state.view.across], across);
    const y = state.view.up ? position(axes[state.view.up], up) : 0;
    if (x === null || y === null) return null;
    const stable = probability(between(found.stable, found.columns, x, y));
    const divergent = probability(between(found.divergent, found.columns, x, y));
    return [stable, Math.max(0, 1 - stable - divergent), divergent];
  }

  // ------------------------------------------------------------------ regions

  const mixed = data.regimes.map(({ colour }) =>
    [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)));

  /** Whether a place carries a line of a regime's hatch: none, diagonals, crossed diagonals. */
  function hatched(regime, x, y) {
    if (regime === 0) return false;
    const down = (((x + y) % 14) + 14) % 14 < 1.6;
    return regime === 1 ? down : down || (((x - y) % 14) + 14) % 14 < 1.6;
  }

  function paint(pixels, at, regime, strength, dark) {
    const level = dark ? 0.42 : 1;
    for (let channel = 0; channel < 3; channel++) {
      const colour = strength * mixed[regime][channel] + (1 - strength) * 255;
      pixels[at + channel] = colour * level;
    }
    pixels[at + 3] = 255;
  }

  function drawRegions(found) {
    const canvas = byId("regions");
    const { width, height } = state.box;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.left = `${MARGIN.left}px`;
    canvas.style.top = `${MARGIN.top}px`;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(canvas.width, canvas.height);
    if (!state.view.up) return;
    const shading = byId("uncertainty").checked;
    for (let row = 0; row < canvas.height; row++) {
      const up = fromPixel("up", (row + 0.5) / ratio);
      for (let i = 0; i < canvas.width; i++) {
        const chances = regimesAt(found, fromPixel("across", (i + 0.5) / ratio), up);
        if (chances === null) continue;
        const regime = chances.indexOf(Math.max(...chances));
        const strength = shading && chances[regime] < SURE ? 0.3 : 0.65;
        paint(image.data, 4 * (row * canvas.width + i), regime, strength,
          hatched(regime, i / ratio, row / ratio));
      }
    }
    pen.putImageData(image, 0, 0);
  }

  // ------------------------------------------------------------------ lines

  /** Lines where values on a lattice pass a level, as chains of [column, row]. */
  function contours(values, rows, columns, level) {
    const crossing = new Map();
    const links = new Map();
    const cross = (a, b) => {
      const key = a < b ? `${a}:${b}` : `${b}:${a}`;
      const share = (level - values[a]) / (values[b] - values[a]);
      const along = (from, to) => from + share * (to - from);
      crossing.set(key, [along(a % columns, b % columns),
        along(Math.floor(a / columns), Math.floor(b / columns))]);
      return key;
    };
    const link = (a, b) => {
      for (const [from, to] of [[a, b], [b, a]]) links.set(from, [...(links.get(from) || []), to]);
    };
    for (let row = 0; row + 1 < rows; row++) {
      for (let i = 0; i + 1 < columns; i++) {
        const first = row * columns + i;
        const corners = [first, first + 1, first + 1 + columns, first + columns];
        const ends = [];
        corners.forEach((a, k) => {
          const b = corners[(k + 1) % 4];
          if ((values[a] >= level) !== (values[b] >= level)) ends.push(cross(a, b));
        });
        if (ends.length >= 2) link(ends[0], ends[1]);
        if (ends.length === 4) link(ends[2], ends[3]);
      }
    }
    return chained(links).map((chain) => chain.map((key) => crossing.get(key)));
  }

  /** Linked crossings as chains: open ones from their ends first, then the closed ones. */
  function chained(links) {
    const chains = [];
    const left = new Set(links.keys());
    const walk = (from) => {
      const chain = [];
      for (let key = from; key !== undefined;) {
        left.delete(key);
        chain.push(key);
        key = links.get(key).find((next) => left.has(next));
      }
      if (chain.length > 2 && links.get(chain.at(-1)).includes(from)) chain.push(from);
      chains.push(chain);
    };
    for (const [key, next] of links) if (next.length === 1 && left.has(key)) walk(key);
    for (const key of links.keys()) if (left.has(key)) walk(key);
    return chains;
  }

  /** A level set on the plane as lines of pixels; the level at zero has lines of its own. */
  function levelLines(found, values, level) {
    const across = axes[state.view.across], up = axes[state.view.up];
    const zeroColumn = across.zero ? 1 : 0, zeroRow = up.zero ? 1 : 0;
    const rows = found.rows - zeroRow, columns = found.columns - zeroColumn;
    const inner = new Float64Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < columns; i++) {
        inner[row * columns + i] = values[(row + zeroRow) * found.columns + i + zeroColumn];
      }
    }
    const lines = contours(inner, rows, columns, level).map((chain) =>
      chain.map(([i, j]) => toPixel(i / (columns - 1), j / (rows - 1))));
    const band = [2 * data.zero, data.zero / 2];
    for (const u of zeroRow ? passes(values.subarray(zeroColumn, found.columns), level) : []) {
      lines.push(band.map((v) => toPixel(u, v)));
    }
    if (zeroColumn) {
      const side = Float64Array.from({ length: rows },
        (_, row) => values[(row + zeroRow) * found.columns]);
      for (const u of passes(side, level)) lines.push(band.map((v) => toPixel(v, u)));
    }
    return lines;
  }

  /** Places where values along a line pass a level. */
  function passes(values, level) {
    const places = [];
    for (let i = 0; i + 1 < values.length; i++) {
      if ((values[i] >= level) === (values[i + 1] >= level)) continue;
      const share = (level - values[i]) / (values[i + 1] - values[i]);
      places.push((i + share) / (values.length - 1));
    }
    return places;
  }

  const asPath = (lines) => lines.map((line) =>
    line.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("")).join("");

  const STYLES = {
    stable: { width: 2.4, dash: "" },
    divergent: { width: 2.4, dash: "9 5" },
    interval: { width: 1.1, dash: "1.5 3.5" },
    // Theory is white on black, what was measured black on white: told apart without colour.
    exact: { width: 2.2, dash: "", theory: true },
    limit: { width: 2.2, dash: "6 4", theory: true },
  };

  function stroke(parent, path, style, kind) {
    const group = svg("g", { "data-line": kind, class: style.theory ? "theory" : "" }, parent);
    svg("path", { d: path, class: "halo", "stroke-width": style.width + 2.2 }, group);
    svg("path", { d: path, class: "bound", "stroke-width": style.width,
      "stroke-dasharray": style.dash }, group);
  }

  function drawLines(parent, found) {
    const divergence = found.divergent;
    if (byId("uncertainty").checked) {
      for (const values of [found.stable, divergence]) {
        for (const level of [logit(0.05), logit(0.95)]) {
          stroke(parent, asPath(levelLines(found, values, level)), STYLES.interval, "interval");
        }
      }
    }
    stroke(parent, asPath(levelLines(found, found.stable, 0)), STYLES.stable, "stable");
    stroke(parent, asPath(levelLines(found, divergence, 0)), STYLES.divergent, "divergent");
    if (byId("theory").checked && theoryFits()) {
      for (const bound of data.theory) {
        const turn = ([lr, decay]) =>
          (state.view.across === "lr" ? toPixel(lr, decay) : toPixel(decay, lr));
        stroke(parent, asPath([bound.line.map(turn)]),
          bound.exact ? STYLES.exact : STYLES.limit, "theory");
      }
    }
  }

  /** Whether the plane is the one over which the bounds are curves. */
  function theoryFits() {
    const { across, up } = state.view;
    return data.theory.length > 0 && [across, up].every((n) => n === "lr" || n === "weight_decay");
  }

  // ------------------------------------------------------------------ paper

  const scales = () => ({
    across: start(axes[state.view.across]),
    up: state.view.up ? start(axes[state.view.up]) : 0,
  });

  function toPixel(across, up) {
    const { width, height } = state.box;
    const low = scales();
    const high = state.view.up ? 1 : 1.2; // above the curves: a row of points for each regime
    return [MARGIN.left + ((across - low.across) / (1 - low.across)) * width,
      MARGIN.top + (1 - (up - low.up) / (high - low.up)) * height];
  }

  /** Place along one side of the paper, from pixels within it. */
  function fromPixel(side, pixel) {
    const low = scales()[side];
    const share = side === "across" ? pixel / state.box.width : 1 - pixel / state.box.height;
    const high = side === "up" && !state.view.up ? 1.2 : 1;
    return low + share * (high - low);
  }

  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const power = (decade) => "10" + (decade < 0 ? "⁻" : "") +
    [...String(Math.abs(decade))].map((digit) => SUPERSCRIPTS[digit]).join("");

  /** Ticks as [place, label]; those without a label are small. */
  function ticks(axis) {
    const found = axis.scale === "log" ? logTicks(axis) : linearTicks(axis);
    return axis.zero ? [[data.zero, "0"], ...found] : found;
  }

  function logTicks(axis) {
    const low = Math.floor(Math.log10(axis.low)), high = Math.ceil(Math.log10(axis.high));
    const inside = (value) => value >= axis.low * (1 - 1e-9) && value <= axis.high * (1 + 1e-9);
    const decades = [];
    for (let d = low; d <= high; d++) if (inside(10 ** d)) decades.push(d);
    const few = decades.length < 2;
    const step = Math.max(1, Math.ceil(decades.length / 9));
    const found = [];
    for (let d = low; d <= high; d++) {
      for (let m = 1; m < 10; m++) {
        const value = m * 10 ** d;
        if (!inside(value)) continue;
        const labelled = few ? m === 1 || m === 2 || m === 5 : m === 1 && d % step === 0;
        const label = few ? shown(Number(value.toPrecision(3))) : power(d);
        found.push([unit(axis, value), labelled ? label : ""]);
      }
    }
    if (found.filter(([, label]) => label).length < 2) {
      for (const value of [axis.low, axis.high]) found.push([unit(axis, value), shown(value)]);
    }
    return found;
  }

  function linearTicks(axis) {
    const range = axis.high - axis.low;
    const rough = range / 5, decade = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * decade).find((candidate) => candidate >= rough);
    const found = [];
    for (let i = Math.ceil(axis.low / step - 1e-9); i * step <= axis.high + 1e-9 * range; i++) {
      found.push([unit(axis, i * step), shown(Number((i * step).toPrecision(6)))]);
    }
    return found;
  }

  function drawPaper(parent) {
    const { width, height } = state.box;
    const { left, top } = MARGIN, bottom = top + height;
    const across = axes[state.view.across];
    svg("rect", { x: left, y: top, width, height, class: "axis" }, parent);
    for (const [place, label] of ticks(across)) {
      const x = toPixel(place, 0)[0];
      svg("line", { x1: x, x2: x, y1: bottom, y2: bottom + (label ? 7 : 4), class: "axis" },
        parent);
      if (label) svg("text", { x, y: bottom + 21, "text-anchor": "middle" }, parent, label);
    }
    const up = state.view.up ? axes[state.view.up] : null;
    const upTicks = up ? ticks(up) : [0, 0.25, 0.5, 0.75, 1].map((p) => [p, String(p)]);
    for (const [place, label] of upTicks) {
      const y = toPixel(0, place)[1];
      svg("line", { x1: left, x2: left - (label ? 7 : 4), y1: y, y2: y, class: "axis" }, parent);
      if (label) svg("text", { x: left - 11, y: y + 4, "text-anchor": "end" }, parent, label);
    }
    svg("text", { x: left + width / 2, y: bottom + 43, "text-anchor": "middle" }, parent,
      `${spaced(across.name)} (${across.scale})`);
    svg("text", { transform: `translate(18 ${top + height / 2}) rotate(-90)`,
      "text-anchor": "middle" }, parent,
    up ? `${spaced(up.name)} (${up.scale})` : "probability");
  }

  /** With one free axis: the probabilities along it, told apart by colour and dashes. */
  function drawCurves(parent, found) {
    const axis = axes[state.view.across];
    const { width, height } = state.box;
    svg("rect", { x: MARGIN.left, y: MARGIN.top, width, height, fill: "#fff" }, parent);
    const dashes = ["", "9 5", "2 4"];
    names.forEach((name, regime) => {
      const places = [];
      for (let i = axis.zero ? 1 : 0; i < found.columns; i++) {
        const place = placeOf(axis, i);
        places.push(toPixel(place, regimesAt(found, place, 0)[regime]));
      }
      svg("path", { d: asPath([places]), fill: "none", stroke: colours[name], "stroke-width": 3,
        "stroke-dasharray": dashes[regime], "data-line": name }, parent);
      if (!axis.zero) return;
      const chance = regimesAt(found, data.zero, 0)[regime];
      const level = [2 * data.zero, data.zero / 2].map((place) => toPixel(place, chance));
      svg("path", { d: asPath([level]), fill: "none", stroke: colours[name], "stroke-width": 3,
        "stroke-dasharray": dashes[regime] }, parent);
    });
  }

  // ------------------------------------------------------------------ points

  /** A marker's outline around the origin: circle, square, cross. */
  function outline(regime, size) {
    const kind = (data.regimes.find((r) => r.name === regime) || { marker: "o" }).marker;
    const s = size, t = size * 0.42;
    if (kind === "s") return `M${-s} ${-s}H${s}V${s}H${-s}Z`;
    if (kind === "X") {
      return `M${-s} ${-s + t}L${-s + t} ${-s}L0 ${-t}L${s - t} ${-s}L${s} ${-s + t}L${t} 0` +
        `L${s} ${s - t}L${s - t} ${s}L0 ${t}L${-s + t} ${s}L${-s} ${s - t}L${-t} 0Z`;
    }
    return `M${-s} 0A${s} ${s} 0 1 1 ${s} 0A${s} ${s} 0 1 1 ${-s} 0Z`;
  }

  /** Points on this plane: all, or those near the slice. */
  function visible() {
    const all = Array.from({ length: count }, (_, index) => index);
    const { along } = state.view;
    if (!along) return all;
    const here = placeOf(axes[along], state.slice);
    return all.filter((index) => {
      const place = unit(axes[along], column[along][index]);
      // What was trained at the extra zero belongs to that level alone.
      return (place < 0) === (here < 0) && Math.abs(place - here) <= data.near + 1e-9;
    });
  }

  function placed(index) {
    const { across, up } = state.view;
    const x = unit(axes[across], column[across][index]);
    if (up) return toPixel(x, unit(axes[up], column[up][index]));
    return toPixel(x, 1.15 - 0.045 * Math.max(names.indexOf(column.regime[index]), 0));
  }

  function summary(index) {
    const at = free.map((axis) => `${spaced(axis.name)} ${shown(column[axis.name][index])}`);
    return `Point ${column.number[index]}: ${at.join(", ")}. ` +
      `${column.regime[index]}: ${column.reason[index]}`;
  }

  const marks = new Map();

  function drawPoints(parent) {
    marks.clear();
    for (const index of visible()) {
      const [x, y] = placed(index);
      const regime = column.regime[index];
      const mark = svg("g", { class: "point", role: "button", tabindex: -1,
        transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, "aria-label": summary(index),
        "data-number": column.number[index] }, parent);
      svg("path", { d: outline(regime, MARK), class: "back" }, mark);
      svg("path", { d: outline(regime, MARK), fill: colours[regime] || "#888", class: "mark" },
        mark);
      svg("circle", { r: MARK + 4.5, class: "ring" }, mark);
      mark.addEventListener("focus", () => show(index));
      mark.addEventListener("keydown", (event) => onKey(event, index));
      marks.set(index, { mark, x, y });
    }
    const entry = marks.has(state.shown) ? state.shown : [...marks.keys()][0];
    if (entry !== undefined) marks.get(entry).mark.setAttribute("tabindex", 0);
    if (marks.has(state.shown)) marks.get(state.shown).mark.classList.add("shown");
  }

  /** The nearest point to an arrow's side; sideways distance counts twice. */
  function neighbour(index, dx, dy) {
    const from = marks.get(index);
    let best = null, least = Infinity;
    for (const [other, { x, y }] of marks) {
      const ahead = (x - from.x) * dx + (y - from.y) * dy;
      const aside = Math.abs((x - from.x) * dy) + Math.abs((y - from.y) * dx);
      if (other !== index && ahead > 0.5 && ahead + 2 * aside < least) {
        least = ahead + 2 * aside;
        best = other;
      }
    }
    return best;
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function onKey(event, index) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const order = [...marks.keys()];
    const here = order.indexOf(index);
    let next = null;
    if (event.key in ARROWS) next = neighbour(index, ...ARROWS[event.key]);
    else if (event.key === "PageDown") next = order[here + 1] ?? null;
    else if (event.key === "PageUp") next = order[here - 1] ?? null;
    else if (event.key === "Home") next = order[0];
    else if (event.key === "End") next = order.at(-1);
    else if (event.key === "Enter" || event.key === " ") openRun(index);
    else return;
    event.preventDefault();
    if (next !== null) focusOn(next);
  }

  function focusOn(index) {
    show(index);
    marks.get(index).mark.focus({ preventScroll: true });
  }

  // ------------------------------------------------------------------ evidence

  const MAIN = { lr: "lr", alpha: "alpha", weight_decay: "weight decay",
    regime: "regime", reason: "reason", step: "decided at step",
    margin_stable: "margin to stable", margin_bounded: "margin to bounded",
    initial_loss: "initial loss", final_loss: "final loss", metric: "metric" };

  function evidenceOf(index) {
    const rows = Object.entries(MAIN).map(([name, label]) => [label, shown(column[name][index])]);
    const found = names.map((name) => [name, column[`replicates_${name}`][index]]);
    const split = found.filter(([, n]) => n).map(([name, n]) => `${n} ${name}`).join(", ");
    rows.push(["replicates", `${column.replicates[index]} (${split})`]);
    if (column.audit[index]) rows.push(["audit", column.audit[index]]);
    for (const name of data.evidence) {
      if (name in MAIN || column[name][index] === null) continue;
      rows.push([spaced(name), shown(column[name][index])]);
    }
    return rows;
  }

  function show(index) {
    if (marks.has(state.shown)) {
      marks.get(state.shown).mark.classList.remove("shown");
      marks.get(state.shown).mark.setAttribute("tabindex", -1);
    } else {
      for (const { mark } of marks.values()) mark.setAttribute("tabindex", -1);
    }
    state.shown = index;
    if (marks.has(index)) {
      marks.get(index).mark.classList.add("shown");
      marks.get(index).mark.setAttribute("tabindex", 0);
    }
    byId("panel-title").textContent = `Point ${column.number[index]}`;
    byId("panel-empty").hidden = true;
    byId("evidence").replaceChildren(...evidenceOf(index).flatMap(([label, text]) =>
      [html("dt", label), html("dd", text)]));
    byId("run").hidden = false;
    byId("curves").hidden = false;
    const address = runAddress(index);
    byId("run-link").hidden = !address;
    byId("run-search").hidden = Boolean(address);
    if (address) byId("run-address").href = address;
    else byId("run-address").removeAttribute("href");
    byId("filter").value = data.tracking.filters[index];
  }

  /** Only web addresses are ever opened. */
  function runAddress(index) {
    const address = data.tracking.links[index];
    return typeof address === "string" && /^https?:\/\//.test(address) ? address : null;
  }

  function openRun(index) {
    show(index);
    const address = runAddress(index);
    if (address) byId("run-address").click();
    else byId("filter").select();
  }

  // ------------------------------------------------------------------ pointing

  function nearest(event) {
    const box = byId("drawing").getBoundingClientRect();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    let best = null, least = REACH;
    for (const [index, { x, y }] of marks) {
      const distance = Math.hypot(x - px, y - py);
      if (distance < least) {
        least = distance;
        best = index;
      }
    }
    return { index: best, px: px - MARGIN.left, py: py - MARGIN.top };
  }

  function readout(px, py) {
    const { width, height } = state.box;
    const inside = px >= 0 && py >= 0 && px <= width && py <= height;
    const across = fromPixel("across", px), up = fromPixel("up", py);
    const chances = inside ? regimesAt(current, across, state.view.up ? up : 0) : null;
    if (!chances) return "";
    const places = [[state.view.across, across], [state.view.up, up]].filter(([name]) => name)
      .map(([name, place]) => `${spaced(name)} ${shown(valueAt(axes[name], place))}`);
    const parts = names.map((name, i) => `${name} ${Math.round(100 * chances[i])} %`);
    return `Model at ${places.join(", ")}: ${parts.join(", ")}`;
  }

  // ------------------------------------------------------------------ everything around

  function swatch(regime) {
    const canvas = html("canvas");
    const ratio = Math.min(window.devicePixelRatio || 1, 2), width = 34, height = 20;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.setAttribute("aria-hidden", "true");
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < image.data.length / 4; i++) {
      const x = (i % canvas.width) / ratio, y = Math.floor(i / canvas.width) / ratio;
      paint(image.data, 4 * i, regime, 0.65, hatched(regime, x, y));
    }
    pen.putImageData(image, 0, 0);
    return canvas;
  }

  function entry(picture, text) {
    const item = html("li");
    item.append(picture, html("span", text));
    return item;
  }

  function sample(draw, width = 34) {
    const made = svg("svg", { width, height: 20, "aria-hidden": "true" });
    svg("rect", { width, height: 20, fill: "#fff" }, made);
    draw(made);
    return made;
  }

  function lineSample(style) {
    return sample((made) => stroke(made, "M1 10H33", style, "sample"));
  }

  function drawLegend() {
    const items = [];
    const curves = !state.view.up;
    names.forEach((name, regime) => {
      const dash = ["", "9 5", "2 4"][regime];
      items.push(curves
        ? entry(sample((made) => svg("path", { d: "M1 10H33", stroke: colours[name],
          "stroke-width": 3, "stroke-dasharray": dash }, made)), `${name} (model)`)
        : entry(swatch(regime), `${name} (model)`));
    });
    names.forEach((name) => items.push(entry(sample((made) => svg("path",
      { d: outline(name, MARK), fill: colours[name], stroke: "#000",
        transform: "translate(10 10)" }, made), 20), `${name} (${data.counts[name]} trained)`)));
    if (!curves) {
      items.push(entry(lineSample(STYLES.stable), "stable ends"));
      items.push(entry(lineSample(STYLES.divergent), "divergence begins"));
      if (byId("uncertainty").checked) {
        items.push(entry(lineSample(STYLES.interval), "5 % and 95 %; pale: likeliest below 80 %"));
      }
      if (byId("theory").checked && theoryFits()) {
        for (const bound of data.theory) {
          items.push(entry(lineSample(bound.exact ? STYLES.exact : STYLES.limit),
            bound.label + (axes.alpha.scale !== "fixed" || axes.alpha.value ? ", at alpha 0" : "")));
        }
      }
    }
    byId("legend").replaceChildren(...items);
  }

  function sliceText() {
    const { along } = state.view;
    const value = valueAt(axes[along], placeOf(axes[along], state.slice));
    const near = marks.size === 1 ? "1 point" : `${marks.size} points`;
    return [`${spaced(along)} = ${shown(Number(value.toPrecision(3)))}`, `${near} near`];
  }

  let current = null;

  function draw() {
    const focused = document.activeElement?.classList.contains("point");
    const width = byId("frame").clientWidth;
    const height = Math.round(Math.min(Math.max(0.66 * width, 320), 600));
    state.box = { width: width - MARGIN.left - MARGIN.right,
      height: height - MARGIN.top - MARGIN.bottom };
    const drawing = byId("drawing");
    drawing.setAttribute("height", height);
    drawing.replaceChildren();
    current = plane();
    drawRegions(current);
    if (state.view.up) drawLines(drawing, current);
    else drawCurves(drawing, current);
    drawPaper(drawing);
    drawPoints(drawing);
    drawLegend();
    const { across, up, along } = state.view;
    drawing.setAttribute("aria-label", up
      ? `Map: ${spaced(across)} across, ${spaced(up)} up, ${marks.size} points`
      : `Probabilities of the regimes over ${spaced(across)}, ${marks.size} points`);
    if (along) {
      const [value, near] = sliceText();
      byId("slice-name").textContent = spaced(along);
      byId("slice-value").textContent = `${value.split(" = ")[1]} (${near})`;
      byId("slice").setAttribute("aria-valuetext", `${value}, ${near}`);
    }
    byId("uncertainty-row").hidden = !up;
    const bounded = theoryFits();
    byId("theory").disabled = !bounded;
    byId("theory-note").textContent = bounded ? "" : data.theory.length
      ? "(bounds exist for lr and weight decay)" : "(no closed form is known here)";
    if (focused && marks.has(state.shown)) marks.get(state.shown).mark.focus();
  }

  function choose(view) {
    state.view = view;
    const row = byId("slice-row");
    row.hidden = !view.along;
    if (view.along) {
      const levels = lattice.shape[free.findIndex((axis) => axis.name === view.along)];
      byId("slice").max = levels - 1;
      state.slice = axes[view.along].zero || axes[view.along].low === 0 ? 0 : levels >> 1;
      byId("slice").value = state.slice;
    }
    draw();
  }

  function fillTable() {
    const place = byId("table");
    if (place.firstChild) return;
    const listed = ["number", ...data.axes.map((a) => a.name), "regime", "reason", "step",
      "margin_stable", "margin_bounded", "final_loss", "metric", "replicates"];
    const table = html("table");
    const head = table.createTHead().insertRow();
    for (const name of listed) {
      const cell = html("th", spaced(name));
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    for (let index = 0; index < count; index++) {
      const row = body.insertRow();
      for (const name of listed) row.insertCell().textContent = shown(column[name][index]);
    }
    place.append(table);
  }

  function begin() {
    byId("title").textContent = data.title;
    byId("parts").textContent = data.parts.join(" · ");
    byId("quality").replaceChildren(...data.quality.map((line) => html("li", line)));
    byId("theory").checked = data.theory.length > 0;
    byId("view-row").hidden = data.views.length < 2;
    data.views.forEach(({ across, up }, i) => {
      const option = html("option", up ? `${spaced(across)} and ${spaced(up)}` : spaced(across));
      option.value = i;
      byId("view").append(option);
    });
    byId("view").addEventListener("change", (event) => choose(data.views[event.target.value]));
    byId("slice").addEventListener("input", (event) => {
      state.slice = Number(event.target.value);
      draw();
    });
    for (const id of ["uncertainty", "theory"]) byId(id).addEventListener("change", draw);
    byId("table-view").addEventListener("toggle", fillTable);
    const drawing = byId("drawing");
    drawing.addEventListener("pointermove", (event) => {
      const { index, px, py } = nearest(event);
      drawing.style.cursor = index === null ? "" : "pointer";
      byId("readout").textContent = readout(px, py);
      if (index !== null && index !== state.shown) show(index);
    });
    drawing.addEventListener("pointerleave", () => { byId("readout").textContent = ""; });
    drawing.addEventListener("click", (event) => {
      const { index } = nearest(event);
      if (index === null) return;
      focusOn(index);
      openRun(index);
    });
    choose(data.views[0]);
    let before = byId("frame").clientWidth;
    new ResizeObserver(() => {
      const now = byId("frame").clientWidth;
      if (now !== before) requestAnimationFrame(draw);
      before = now;
    }).observe(byId("frame"));
  }

  begin();
})();
