/* The page's state, and what happens to it: drawn, chosen from, stepped through, played. */

const $ = (id) => document.getElementById(id);
const start = JSON.parse($("start").textContent);

let state = { ...start, each: isUneven(start.axes), flip: true, map: "input_grad", chosen: null };
let scene = null; // what `compute` made of the state
let pointed = null; // the entry under the pointer, shown in place of the chosen one
let timer = null;

function draw() {
  scene = compute(state, atStart() ? start.told : undefined);
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

/** Whether the geometry is the one that the page opened with, of which it may have been told more. */
function atStart() {
  const shape = ({ axes, groups, inputs, outputs }) => JSON.stringify([axes, groups, inputs, outputs]);
  return shape(state) === shape(start);
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
