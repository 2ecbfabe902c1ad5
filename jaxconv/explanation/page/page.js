/* The page: what algebra.js computes, drawn, pointed at and stepped through. */

const MAPS = ["forward", "input_grad", "kernel_grad"];
const MOST_CHANNELS = 6;
const MOST_BESIDE = 14; // cells in a row, for three maps side by side
const SPATIAL = ["height", "width"];
const FIELDS = [
  { name: "n", label: "size", least: 1, most: 12 },
  { name: "k", label: "kernel", least: 1, most: 5 },
  { name: "s", label: "stride", least: 1, most: 4 },
  { name: "d", label: "dilation", least: 1, most: 3 },
  { name: "i", label: "input dilation", least: 1, most: 3 },
  { name: "lo", label: "padding lo", least: -3, most: 5 },
  { name: "hi", label: "padding hi", least: -3, most: 5 },
];
const CHANNELS = [
  { name: "groups", label: "groups", least: 1, most: 3 },
  { name: "inputs", label: "inputs per group", least: 1, most: 2 },
  { name: "outputs", label: "outputs per group", least: 1, most: 2 },
];

const RESULTS = ["y", "dx", "dw"];

const $ = (id) => document.getElementById(id);
const start = JSON.parse($("start").textContent);

let state = { ...start, each: isUneven(start.axes), flip: true, map: "input_grad", chosen: null };
let scene = null; // what `compute` made of the state
let pointed = null; // the entry under the pointer, shown in place of the chosen one
let timer = null;

/* Words and numbers */

const signed = (value) => (value < 0 ? `−${-value}` : `${value}`);
const factor = (value) => (value < 0 ? `(${signed(value)})` : signed(value));
const pair = ([lo, hi]) => `(${signed(lo)}, ${signed(hi)})`;
const added = (value) => (value < 0 ? `− ${-value}` : `+ ${value}`);
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** "∂x[0,1,2,0]": an entry as the library indexes it, in the layout of the geometry. */
function entryName(array, key) {
  const index = key.split(",");
  if (start.layout === "NCHW") {
    if (SLOT[array] === "w") index.unshift(index.pop(), index.pop());
    else index.splice(1, 0, index.pop());
  }
  return `${SYMBOL[array]}[${index.join()}]`;
}

const coloured = (array, key) => `<span class="${SLOT[array]}">${entryName(array, key)}</span>`;

/* Controls */

/** Whether one slider for all axes and ends cannot say what these axes are. */
function isUneven(axes) {
  const [first] = axes;
  return axes.some((axis) => axis.lo !== axis.hi || FIELDS.some(({ name }) => axis[name] !== first[name]));
}

function slider(id, said, { label, least, most }, value) {
  return `<div class="slider"><label for="${id}">${label}</label><output for="${id}">${signed(value)}</output>
    <input type="range" id="${id}" aria-label="${said}" min="${Math.min(least, value)}" max="${Math.max(most, value)}"
      value="${value}"></div>`;
}

/** One row of sliders for all axes, or one for each. */
function drawControls() {
  const { axes, each } = state;
  const rank = axes.length;
  const rows = (each ? range(rank) : [0]).map((axis) => {
    const title = rank === 1 ? "axis" : each ? SPATIAL[axis] : "both axes";
    const fields = FIELDS.filter(({ name }) => each || name !== "hi").map((field) => {
      const label = !each && field.name === "lo" ? "padding" : field.label;
      return slider(`${field.name}-${axis}`, `${label}, ${title}`, { ...field, label }, axes[axis][field.name]);
    });
    return `<fieldset><legend>${title}</legend>${fields.join("")}</fieldset>`;
  });
  const channels = CHANNELS.map((field) => slider(field.name, field.label, field, state[field.name]));
  const toggle = `<label class="toggle"><input type="checkbox" role="switch" id="each"${each ? " checked" : ""}>
    ${rank === 2 ? "each axis" : "each end"} on its own</label>`;
  $("controls").innerHTML = `${rows.join("")}<fieldset><legend>channels</legend>${channels.join("")}${toggle}</fieldset>`;
}

function readControl({ id, value, checked }) {
  if (id === "each") return evened({ ...state, each: checked });
  const number = Number(value);
  if (CHANNELS.some(({ name }) => name === id)) return { ...state, [id]: number };
  const [name, at] = id.split("-");
  const moves = (axis) => !state.each || axis === Number(at);
  return evened({ ...state, axes: state.axes.map((old, axis) => (moves(axis) ? { ...old, [name]: number } : old)) });
}

/** Sliders that move together move all axes as the first one, and both ends as its low end. */
function evened(next) {
  const [first] = next.axes;
  return next.each ? next : { ...next, axes: next.axes.map(() => ({ ...first, hi: first.lo })) };
}

/** At most six channels: more groups leave fewer channels to each. */
function limited(next) {
  const most = Math.max(1, Math.floor(MOST_CHANNELS / next.groups));
  return { ...next, inputs: Math.min(next.inputs, most), outputs: Math.min(next.outputs, most) };
}

/** Sliders that another one has moved. */
function syncChannels() {
  for (const { name } of CHANNELS) {
    $(name).value = state[name];
    $(name).previousElementSibling.textContent = state[name];
  }
}

/* Numbers of the geometry, recipes */

/** The axes worth a column: one when all are alike. */
function columnsOf(geometry) {
  const { shown } = geometry;
  const alike = shown.length === 2 && FIELDS.every(({ name }) => shown[0][name] === shown[1][name]);
  return shown.length === 1 || alike ? [{ name: "", at: 1 }] : SPATIAL.map((name, at) => ({ name, at }));
}

function drawNumbers(geometry) {
  const columns = columnsOf(geometry);
  const line = ({ name, at }, words) =>
    `<dd>${name && `<span>${name}</span> `}${words(geometry.axes[at])}</dd>`;
  const row = (name, formula, words) =>
    `<div><dt>${name} <span>= ${formula}</span></dt>${columns.map((column) => line(column, words)).join("")}</div>`;
  const equals = (axis, name) => ` = <strong data-number="${name}">${signed(axis[name])}</strong>`;
  $("numbers").innerHTML = [
    row("span", "d·(k−1) + 1", (a) => `${a.d}·(${a.k}−1) + 1${equals(a, "span")}`),
    row("slack", "n + lo + hi − span", (a) => slackSum(a) + equals(a, "slack")),
    row("out", "⌊slack / s⌋ + 1", (a) =>
      (a.slack < 0 ? "slack &lt; 0, so out" : `⌊${a.slack} / ${a.s}⌋ + 1`) + equals(a, "out")),
    row("unread", "slack mod s", (a) => `${signed(a.slack)} mod ${a.s}${equals(a, "unread")}`),
  ].join("");
}

const slackSum = (a) => `${a.length} ${added(a.lo)} ${added(a.hi)} − ${a.span}`;

function drawNotice({ axes, shown, empty }) {
  const short = axes.filter((axis) => axis.out === 0).map((axis) => {
    const name = shown.length === 2 ? ` (${SPATIAL[axes.indexOf(axis)]})` : "";
    return `slack = n + lo + hi − span = ${slackSum(axis)} = ${signed(axis.slack)} < 0${name}`;
  });
  $("notice").textContent =
    `The window does not fit: ${short.join(", ")}. There is no output, and every gradient is 0.`;
  $("notice").hidden = !empty;
}

function drawAlarm({ disagreement: wrong }) {
  $("alarm").hidden = !wrong;
  if (!wrong) return;
  const name = entryName(wrong.array === "unrotated" ? "dx" : wrong.array, wrong.key);
  const given = wrong.recipe === undefined ? "nothing" : signed(wrong.recipe);
  $("alarm").textContent =
    `This page is wrong: its recipe gives ${name} = ${given}, but the sum of products is ${signed(wrong.sum)}.`;
}

const RECIPE_ROWS = {
  forward: [["dilate x by", "i"], ["pad it by", "(lo, hi)"], ["dilate w by", "d"], ["step by", "s"], ["gives", "out"]],
  input_grad: [["dilate δ by", "s"], ["pad it by", "(span−1−lo, span−1−hi+unread)"],
    ["dilate flipped w by", "d"], ["step by", "i"], ["gives", "n"]],
  kernel_grad: [["dilate x by", "i"], ["pad it by", "(lo, hi−unread)"],
    ["dilate δ by", "s"], ["step by", "d"], ["gives", "k"]],
};

function drawRecipe(map, recipe, geometry) {
  const columns = columnsOf(geometry);
  const rows = ["dilate", "pad", "spread", "step", "gives"].map((name, j) => {
    const [label, formula] = RECIPE_ROWS[map][j];
    const said = map === "input_grad" && !state.flip ? label.replace("flipped ", "") : label;
    const values = columns.map(({ at }) =>
      `<td class="value" data-number="${name}">${name === "pad" ? pair(recipe.pad[at]) : recipe[name][at]}</td>`);
    return `<tr><th scope="row">${said}</th><td>${formula}</td>${values.join("")}</tr>`;
  });
  const head = columns.length === 1 ? "" : `<thead><tr><td></td><td></td>${columns.map(({ name }) =>
    `<th scope="col">${name}</th>`).join("")}</tr></thead>`;
  $(map).querySelector(".recipe").innerHTML = `${head}<tbody>${rows.join("")}</tbody>`;
}

/* Planes */

/** The cells of a frame along one axis: entries, the zeros between and around them, and what is cropped away. */
function frameAxis(n, by, [lo, hi] = [0, 0], isRead = () => true) {
  const length = stretched(n, by);
  const first = Math.min(0, -lo);
  return range(Math.max(length, length + hi) - first).map((j) => {
    const at = j + first;
    return {
      entry: at >= 0 && at < length && at % by === 0 ? at / by : null,
      inside: at >= 0 && at < length,
      framed: at >= -lo && at < length + hi,
      read: isRead(at + lo),
    };
  });
}

function cell(array, plane, row, column) {
  const cropped = !(row.framed && column.framed);
  const unread = !cropped && !(row.read && column.read) ? "unread" : "";
  if (row.entry === null || column.entry === null) {
    const kind = row.inside && column.inside ? "gap" : cropped ? "" : "padding";
    if (!kind) return "<td></td>";
    const said = { gap: "dilation zero", padding: "padding zero" }[kind];
    return `<td class="cell ${kind}${unread && ` ${unread}`}${cropped ? " cropped" : ""}" aria-label="${said}">0</td>`;
  }
  const value = plane.grid[row.entry][column.entry];
  const key = keyOf(scene.geometry, plane, row.entry, column.entry);
  const truth = array === "dx" && !state.flip ? scene.values.dx[key] : value;
  const classes = ["cell", SLOT[array], RESULTS.includes(array) && "result", unread,
    cropped && "cropped", value !== truth && "wrong"].filter(Boolean).join(" ");
  const said = `${entryName(array, key)} = ${signed(value)}${unread ? ", unread" : ""}${cropped ? ", cropped" : ""}${
    value === truth ? "" : `, wrong: the gradient is ${signed(truth)}`}`;
  const text = value === truth ? signed(value) : `<del>${signed(value)}</del><ins>${signed(truth)}</ins>`;
  return `<td class="${classes}" data-array="${array}" data-key="${key}" tabindex="-1" aria-label="${said}">${text}</td>`;
}

function caption(plane) {
  const { groups, inputs, outputs } = scene.geometry;
  const channels = [
    "c" in plane && groups * inputs > 1 && `c ${plane.c}`, "o" in plane && groups * outputs > 1 && `o ${plane.o}`,
  ].filter(Boolean).join(", ");
  return groups > 1 && !("inner" in plane) ? `${channels} · group ${plane.group}` : channels;
}

function drawPlane(array, plane, [rows, columns], windowed) {
  const said = caption(plane);
  const body = rows.map((row) => `<tr>${columns.map((column) => cell(array, plane, row, column)).join("")}</tr>`);
  return `<figure class="plane" data-c="${plane.c}" data-o="${plane.o}">${said && `<figcaption>${said}</figcaption>`}
    <div class="grid"><table role="grid" aria-label="${SYMBOL[array]}${said && `, ${said}`}">${body.join("")}</table>${
  windowed ? '<div class="window" hidden></div>' : ""}</div></figure>`;
}

function drawPart(role, title, array, planes, axes, columns = 1) {
  const drawn = planes.map((plane) => drawPlane(array, plane, axes(plane), role === "read"));
  return `<div class="part ${role}"><h3>${title}</h3>
    <div class="planes" data-planes="${array}" style="--columns: ${columns}">${drawn.join("")}</div></div>`;
}

/** "δ, dilated and padded". */
function readTitle({ read, dilate, pad }) {
  const done = [dilate.some((by) => by > 1) && "dilated", pad.flat().some((by) => by > 0) && "padded",
    pad.flat().some((by) => by < 0) && "cropped"].filter(Boolean);
  const said = done.length === 3 ? `${done[0]}, ${done[1]} and ${done[2]}` : done.join(" and ");
  return `${SYMBOL[read]}${said && `, ${said}`}`;
}

function kernelTitle(map, recipe) {
  const spread = recipe.spread.some((by) => by > 1) ? "dilated" : "";
  const channels = map === "input_grad" && scene.geometry.pairs.length > 1 ? "c and o exchanged" : "";
  const turned = map !== "input_grad" ? "" : state.flip ? "rotated by 180°" : "not rotated";
  return [SYMBOL[recipe.kernel], turned, channels, spread].filter(Boolean).join(", ");
}

/** Kernel planes stand as a matrix: rows are what is made, columns what is summed, so ∂x shows it transposed. */
function ordered(map, planes) {
  return map === "input_grad" ? [...planes].sort((a, b) => a.c - b.c || a.o - b.o) : planes;
}

/** The rows and columns of a plane that a map reads, takes as its kernel, or makes. */
function cellsAlong(map) {
  const { geometry: { axes }, recipe: { [map]: { dilate, pad, spread } } } = scene;
  const along = (axisCells) => (plane) => sizes(plane.grid).map((n, axis) => axisCells(n, axis));
  const turned = map === "input_grad" && state.flip;
  const forward = (axis) => (map === "forward" ? (at) => axes[axis].reads.has(at) : undefined);
  const backward = (axis) =>
    (map === "input_grad" ? (q) => axes[axis].reads.has(q * axes[axis].i + axes[axis].lo) : undefined);
  return {
    read: along((n, axis) => frameAxis(n, dilate[axis], pad[axis], forward(axis))),
    kernel: along((n, axis) => (turned ? frameAxis(n, spread[axis]).reverse() : frameAxis(n, spread[axis]))),
    result: along((n, axis) => frameAxis(n, 1, [0, 0], backward(axis))),
  };
}

function drawMap(map) {
  const { geometry, planes, recipe: { [map]: recipe } } = scene;
  const { empty, inputs, outputs } = geometry;
  const cells = cellsAlong(map);
  const made = map === "input_grad" && !state.flip ? planes.unrotated : planes[recipe.result];
  const columns = { forward: [inputs, 2], input_grad: [outputs, 2], kernel_grad: [2, inputs] }[map];
  const parts = [
    drawPart("read", readTitle(recipe), recipe.read, planes[recipe.read], cells.read),
    drawPart("kernel", kernelTitle(map, recipe), recipe.kernel, ordered(map, planes[recipe.kernel]), cells.kernel, columns[0]),
    drawPart("result", SYMBOL[recipe.result], recipe.result, made, cells.result, columns[1]),
  ];
  const nothing = '<div class="part"><h3>y: no output</h3></div>';
  const drawn = !empty ? parts : map === "forward" ? [parts[0], parts[1], nothing] : [parts[2]];
  $(map).querySelector(".drawing").innerHTML = drawn.join("");
  drawRecipe(map, recipe, geometry);
}

/** The widest frame decides how large a cell can be, and whether three maps fit side by side. */
function fit() {
  const frames = MAPS.map((map) => {
    const { read, dilate, pad } = scene.recipe[map];
    const [{ grid: a }, second] = scene.planes[read];
    return { cells: frameAxis(sizes(a)[1], dilate[1], pad[1]).length, beside: second ? 2 : 1 };
  });
  const widest = Math.max(...frames.map(({ cells }) => cells));
  $("maps").classList.toggle("stacked", widest > MOST_BESIDE);
  const across = Math.max(...frames.map(({ cells, beside }) => cells * beside + beside - 1));
  $("maps").style.setProperty("--across", across);
}

function draw() {
  scene = compute(state);
  drawNumbers(scene.geometry);
  drawNotice(scene.geometry);
  drawAlarm(scene);
  fit();
  MAPS.forEach(drawMap);
  for (const planes of document.querySelectorAll(".planes")) {
    planes.querySelector("[data-key]")?.setAttribute("tabindex", "0");
  }
  if (!state.chosen || !(state.chosen.key in scene.values[state.chosen.array])) state.chosen = beginning();
  syncPlayer();
  explain();
}

/* Explaining an entry */

const shownEntry = () => pointed ?? state.chosen;
const cellsOf = (array, key) => document.querySelectorAll(`[data-array="${array}"][data-key="${key}"]`);

/** The terms an entry takes part in; an unflipped kernel pairs its δ with the mirrored tap. */
function termsAt({ array, key }) {
  const slot = SLOT[array];
  const found = scene.terms.filter((term) => term[slot] === key);
  return slot === "x" && !state.flip ? found.map((term) => ({ ...term, w: term.mirror })) : found;
}

/** The map that makes an entry, or that makes the gradient of one that is given. */
const mapOf = (array) => ({ y: "forward", x: "input_grad", w: "kernel_grad" })[SLOT[array]];

function explain() {
  const entry = shownEntry();
  const terms = termsAt(entry);
  highlight(entry, terms);
  moveWindows(entry);
  writeEquation(entry, terms);
}

function highlight({ array, key }, terms) {
  for (const old of document.querySelectorAll("td.chosen, td.operand, td.touched")) {
    old.classList.remove("chosen", "operand", "touched");
  }
  const mark = (name, a, k) => cellsOf(a, k).forEach((td) => td.classList.add(name));
  const both = { x: ["x", "dx"], w: ["w", "dw"], y: ["delta", "y"] };
  for (const slot of Object.keys(both).filter((other) => other !== SLOT[array])) {
    const [operand, result] = both[slot];
    for (const other of new Set(terms.map((term) => term[slot]))) {
      mark("operand", operand, other);
      mark("touched", result, other);
    }
  }
  both[SLOT[array]].forEach((a) => mark("chosen", a, key));
}

/** In its own map an entry is made by one window; in the others its terms span a box. */
function moveWindows({ array, key }) {
  for (const td of document.querySelectorAll("[data-times]")) delete td.dataset.times;
  const own = mapOf(array);
  for (const map of MAPS) {
    const windows = ownWindows(map, array, key);
    for (const plane of $(map).querySelectorAll(".read .plane")) {
      const over = windows.find(({ channel: [name, value] }) => plane.dataset[name] === `${value}`);
      const at = map === own ? over : spanOf(plane);
      place(plane.querySelector(".window"), at, map !== own);
      if (at?.kernel) writeTaps(plane, at);
    }
  }
}

/** Where the window of an entry stands on each plane that its map reads, and the kernel over it. */
function ownWindows(map, array, key) {
  const { planes, recipe: all, geometry } = scene;
  if (map !== mapOf(array) || geometry.empty) return [];
  const recipe = all[map === "input_grad" && !state.flip ? "unrotated" : map];
  const { plane: made, at } = placeOf(planes[recipe.result], key);
  const meets = (w) => ["c", "o"].every((name) => !(name in made) || w[name] === made[name]);
  return planes.w.filter(meets).map((w) => {
    const kernel = recipe.kernel === "w" ? w.grid : planes.delta[w.o].grid;
    const [row, column] = at.map((p, axis) => p * recipe.step[axis] + Math.max(0, -recipe.pad[axis][0]));
    const [tall, wide] = sizes(kernel).map((n, axis) => stretched(n, recipe.spread[axis]));
    return {
      channel: recipe.read === "x" ? ["c", w.c] : ["o", w.o],
      row, column, tall, wide,
      spread: recipe.spread, kernel: recipe.rotate ? rotated(kernel) : kernel,
    };
  });
}

/** The plane of an entry, and its row and column there. */
function placeOf(planes, key) {
  const places = planes.flatMap((plane) =>
    plane.grid.flatMap((row, h) => row.map((_, w) => ({ plane, at: [h, w] }))));
  return places.find(({ plane, at }) => keyOf(scene.geometry, plane, ...at) === key);
}

/** The box around the marked cells of a plane. */
function spanOf(plane) {
  const marked = [...plane.querySelectorAll("td.operand, td.chosen")];
  if (!marked.length) return null;
  const rows = marked.map((td) => td.parentElement.rowIndex);
  const columns = marked.map((td) => td.cellIndex);
  const [row, column] = [Math.min(...rows), Math.min(...columns)];
  return { row, column, tall: Math.max(...rows) - row + 1, wide: Math.max(...columns) - column + 1 };
}

function place(box, at, spans) {
  box.hidden = !at;
  box.classList.toggle("spans", spans);
  for (const name of at ? ["row", "column", "tall", "wide"] : []) box.style.setProperty(`--${name}`, at[name]);
}

/** Each cell under a window says by what it is multiplied. */
function writeTaps(plane, { row, column, spread, kernel }) {
  const { rows } = plane.querySelector("table");
  kernel.forEach((values, h) => values.forEach((value, w) => {
    const td = rows[row + h * spread[0]]?.cells[column + w * spread[1]];
    if (td) td.dataset.times = `×${signed(value)}`;
  }));
}

/** The gradient an entry stands for, as symbols, as numbers and in total. */
function equationOf({ array, key }, terms) {
  const { values } = scene;
  const [result, first, second] = { y: ["y", "x", "w"], x: ["dx", "delta", "w"], w: ["dw", "x", "delta"] }[SLOT[array]];
  const unflipped = result === "dx" && !state.flip;
  const factors = terms.map((term) => [first, second].map((name) => ({ array: name, key: term[SLOT[name]] })));
  return {
    result, factors,
    total: values[unflipped ? "unrotated" : result][key],
    truth: values[result][key],
    numbers: factors.map((both) => both.map((f) => factor(values[f.array][f.key])).join("·")),
  };
}

/** What an entry is, in words: a result is a sum; what is given enters one for every use. */
function aboutEntry({ array, key }, { result, factors, total }) {
  const given = () => `${entryName(array, key)} = ${signed(scene.values[array][key])}`;
  const made = `<strong>${coloured(result, key)} = ${signed(total)}</strong>`;
  const products = factors.length;
  const back = `and ${made} collects what comes back.`;
  if (!products && scene.geometry.empty) return `${made}: there is no output.`;
  if (!products && result === "dx") return `${made}: no window reads ${entryName("x", key)}.`;
  if (!products) return `${made}: all its products are with zeros.`;
  if (array === "x") return `${given()} is read ${products === 1 ? "once" : `${products} times`}, ${back}`;
  if (array === "w") return `${given()} multiplies ${plural(products, "input")}, ${back}`;
  if (array === "delta") return `${given()} is what comes back to ${made}.`;
  return `${made}, the sum of ${plural(products, "product")}${zerosMet(result, products)}.`;
}

/** Of a result: how many products of its window are with zeros, which the sum leaves out. */
function zerosMet(result, products) {
  const { axes: [height, width], inputs, outputs } = scene.geometry;
  const taps = height.k * width.k;
  const zeros = { y: taps * inputs, dx: taps * outputs, dw: height.out * width.out }[result] - products;
  return zeros ? `; ${zeros} more of its taps ${zeros === 1 ? "meets a zero" : "meet zeros"}` : "";
}

function writeEquation(entry, terms) {
  const equation = equationOf(entry, terms);
  const { result, factors, numbers, total, truth } = equation;
  const symbols = factors.map((both) => both.map((f) => coloured(f.array, f.key)).join("·"));
  $("about").innerHTML = aboutEntry(entry, equation) + (total === truth ? ""
    : ` <em>That is without the flip: the gradient is ${signed(truth)}.</em>`);
  $("symbols").innerHTML = symbols.length ? `${coloured(result, entry.key)} = ${symbols.join(" + ")}` : "";
  $("products").textContent = numbers.length ? `= ${numbers.join(" + ")} = ${signed(total)}` : "";
  $("live").textContent = [$("about").textContent, $("products").textContent].join(" ");
}

/* Choosing, stepping, playing */

const entryOf = (td) => ({ array: td.dataset.array, key: td.dataset.key });
const resultCells = (map) => [...$(map).querySelectorAll(".result [data-key]")];

/** Where to begin: the first result with the most products. */
function beginning() {
  const map = scene.geometry.empty ? "input_grad" : state.map;
  const { result } = scene.recipe[map];
  const products = {};
  for (const term of scene.terms) products[term[SLOT[result]]] = (products[term[SLOT[result]]] ?? 0) + 1;
  const count = (key) => products[key] ?? 0;
  const key = Object.keys(scene.values[result]).reduce((most, other) => (count(other) > count(most) ? other : most));
  return { array: result, key };
}

function choose(entry) {
  state.chosen = entry;
  if (RESULTS.includes(entry.array)) state.map = mapOf(entry.array);
  syncPlayer();
  explain();
}

/** Where the chosen entry stands among the results of the stepped map; −1 if it is of another. */
function position() {
  const { array, key } = state.chosen;
  return mapOf(array) === state.map ? resultCells(state.map).findIndex((td) => td.dataset.key === key) : -1;
}

function step(by) {
  const cells = resultCells(state.map);
  if (!cells.length) return;
  const at = position();
  pointed = null;
  choose(entryOf(cells[at < 0 ? 0 : mod(at + by, cells.length)]));
}

function syncPlayer() {
  const count = resultCells(state.map).length;
  document.querySelector(`#steps [value="${state.map}"]`).checked = true;
  $("position").textContent = count ? `${position() + 1 || "–"} of ${count}` : "no output";
  for (const id of ["previous", "play", "next"]) $(id).disabled = !count;
  if (timer && !count) pause();
}

function play() {
  const slow = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("live").setAttribute("aria-live", "off");
  $("play").textContent = "Pause";
  step(1);
  timer = setInterval(() => step(1), slow ? 1800 : 900);
}

function pause() {
  clearInterval(timer);
  timer = null;
  $("live").setAttribute("aria-live", "polite");
  $("play").textContent = "Play";
}

const toggle = () => (timer ? pause() : play());

/** The nearest entry of the same array in an arrow's direction, across zeros and planes. */
function neighbour(td, [down, right]) {
  const centre = (other) => {
    const box = other.getBoundingClientRect();
    return [box.top + box.height / 2, box.left + box.width / 2];
  };
  const [top, left] = centre(td);
  const away = [...td.closest(".planes").querySelectorAll("[data-key]")].map((other) => {
    const [y, x] = centre(other);
    const [ahead, aside] = down ? [(y - top) * down, Math.abs(x - left)] : [(x - left) * right, Math.abs(y - top)];
    return { other, ahead, distance: ahead + 4 * aside };
  });
  return away.filter(({ ahead }) => ahead > 1).sort((a, b) => a.distance - b.distance)[0]?.other;
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/* Events */

const entryUnder = (event) => event.target.closest?.("[data-key]");

$("controls").addEventListener("input", ({ target }) => {
  state = limited(readControl(target));
  pointed = null;
  if (target.id === "each") {
    drawControls();
    $("each").focus();
  } else {
    target.previousElementSibling.textContent = signed(Number(target.value));
    syncChannels();
  }
  draw();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("flip").addEventListener("input", ({ target }) => {
  state.flip = target.checked;
  draw();
});
$("steps").addEventListener("input", ({ target }) => {
  state.map = target.value;
  choose(beginning());
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("play").addEventListener("click", toggle);

$("maps").addEventListener("pointerover", (event) => {
  const td = event.target.closest("td");
  if (!td && event.target.closest("table")) return; // between two cells
  pointed = td?.dataset.key && event.pointerType !== "touch" ? entryOf(td) : null;
  explain();
});
$("maps").addEventListener("pointerleave", () => {
  pointed = null;
  explain();
});
$("maps").addEventListener("focusin", (event) => {
  const td = entryUnder(event);
  if (!td) return;
  td.closest(".planes").querySelectorAll('[tabindex="0"]').forEach((old) => old.setAttribute("tabindex", "-1"));
  td.setAttribute("tabindex", "0");
  if (timer) pause();
  choose(entryOf(td));
});
document.addEventListener("keydown", (event) => {
  const td = entryUnder(event);
  const arrow = td && ARROWS[event.key];
  const free = td || event.target === document.body;
  if (arrow || (event.key === " " && free)) event.preventDefault();
  if (arrow) neighbour(td, arrow)?.focus();
  if (event.key === " " && free) toggle();
});

/* For tests and for the curious */

function numbers() {
  const { geometry, values, recipe } = scene;
  const { rank, axes: [height, width], groups, inputs, outputs, shown } = geometry;
  const nested = (rows, columns, leaf) => {
    const all = grid(rows, columns, leaf);
    return rank === 1 ? all[0] : all;
  };
  const data = (array, channels, size) => [nested(height[size], width[size], (h, w) =>
    range(channels).map((c) => values[array][geometry.dataKey(h, w, c)]))];
  const kernel = (array) => nested(height.k, width.k, (h, w) => range(inputs).map((inner) =>
    range(groups * outputs).map((o) => values[array][geometry.kernelKey(h, w, { inner, o })])));
  const axisNumbers = ["span", "slack", "out", "unread", "input_grad_padding", "kernel_grad_padding"];
  return {
    ...Object.fromEntries(["x", "dx", "unrotated"].map((array) => [array, data(array, groups * inputs, "n")])),
    ...Object.fromEntries(["y", "delta"].map((array) => [array, data(array, groups * outputs, "out")])),
    ...Object.fromEntries(["w", "dw"].map((array) => [array, kernel(array)])),
    ...Object.fromEntries(axisNumbers.map((name) => [name, shown.map((axis) => axis[name])])),
    recipe,
  };
}

function set(changes) {
  if (timer) pause();
  pointed = null;
  const next = { ...state, ...changes };
  state = limited(evened({ ...next, each: changes.each ?? (state.each || isUneven(next.axes)) }));
  $("flip").checked = state.flip;
  drawControls();
  draw();
}

/** The page for scripts: its state, its numbers in NHWC and HWIO order, and a way to set them. */
window.jaxconv = { set, numbers, state: () => structuredClone(state) };

drawControls();
draw();
