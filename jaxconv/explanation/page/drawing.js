/* What algebra.js computes, drawn: numbers of the geometry, recipes, planes of cells. */

const MAPS = ["forward", "input_grad", "kernel_grad"];
const RESULTS = ["y", "dx", "dw"];
const SPATIAL = ["height", "width"];
const MOST_BESIDE = 14; // cells in a row, for three maps side by side

/* Words and numbers */

const DIGITS_SHOWN = 3; // of a fraction
const rounded = (value, digits) => (Number.isInteger(value) ? value : Number(Number(value).toPrecision(digits)));
const signed = (value, digits = DIGITS_SHOWN) =>
  (value < 0 ? `−${rounded(-value, digits)}` : `${rounded(value, digits)}`);
/** A wrong number, with as many digits as it takes to tell it from the right one. */
const toldApart = (value, truth) => {
  const digits = range(12).map((more) => more + DIGITS_SHOWN);
  return signed(value, digits.find((n) => signed(value, n) !== signed(truth, n)));
};
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
  const verdict = start.told?.verdict;
  $("alarm").hidden = !wrong && !verdict;
  if (!wrong) {
    $("alarm").textContent = verdict && (atStart() ? verdict
      : `${verdict} That was for the geometry this page opened with; here all numbers are the right ones.`);
    return;
  }
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

/** What a rule makes of an entry instead of the right number, where it does. */
const ruleOf = (array, key) => (array === "dx" && !state.flip ? undefined : scene.wrong[array]?.[key]);

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
  const ruled = ruleOf(array, key);
  const shown = ruled ? ruled.value : value;
  const isWrong = Boolean(ruled) || value !== truth;
  const classes = ["cell", SLOT[array], RESULTS.includes(array) && "result", unread,
    cropped && "cropped", isWrong && "wrong"].filter(Boolean).join(" ");
  const said = `${entryName(array, key)} = ${toldApart(shown, truth)}${unread ? ", unread" : ""}${cropped ? ", cropped" : ""}${
    !isWrong ? "" : `, wrong: the gradient is ${signed(truth)}`}`;
  const text = !isWrong ? signed(value) : `<del>${toldApart(shown, truth)}</del><ins>${signed(truth)}</ins>`;
  const longest = Math.max(...[shown, truth].map((number) =>
    (Number.isInteger(number) ? 0 : toldApart(number, number === truth ? NaN : truth).length)));
  const style = longest ? ` style="--letters: ${longest}"` : "";
  return `<td class="${classes}" data-array="${array}" data-key="${key}" tabindex="-1" aria-label="${said}"${style}>${
    text}</td>`;
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
