/* An entry explained: its terms marked in all three maps, the windows that make it, its equation. */

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

const FACTORS = { y: ["y", "x", "w"], dx: ["dx", "delta", "w"], dw: ["dw", "x", "delta"] };

/** The gradient an entry stands for, as symbols, as numbers and in total. */
function equationOf({ array, key }, terms) {
  const { values } = scene;
  const [result, first, second] = FACTORS[{ y: "y", x: "dx", w: "dw" }[SLOT[array]]];
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

/** What a wrong rule computes in place of this entry, and of which products. */
function ruleSaid(result, key) {
  const ruled = ruleOf(result, key);
  if (!ruled) return "";
  const [, first, second] = FACTORS[result];
  const sum = ruled.products.map(([by, a, b]) =>
    `${by === 1 ? "" : `${factor(by)}·`}${coloured(first, a)}·${coloured(second, b)}`).join(" + ") || "0";
  return `<em>WRONG: the rule gives ${toldApart(ruled.value, scene.values[result][key])} = ${sum}.</em> Right: `;
}

function writeEquation(entry, terms) {
  const equation = equationOf(entry, terms);
  const { result, factors, numbers, total, truth } = equation;
  const symbols = factors.map((both) => both.map((f) => coloured(f.array, f.key)).join("·"));
  $("about").innerHTML = ruleSaid(result, entry.key) + aboutEntry(entry, equation) + (total === truth ? ""
    : ` <em>That is without the flip: the gradient is ${signed(truth)}.</em>`);
  $("symbols").innerHTML = symbols.length ? `${coloured(result, entry.key)} = ${symbols.join(" + ")}` : "";
  const equals = numbers.length && !Number.isInteger(total) ? "≈" : "="; // fractions are shown rounded
  $("products").textContent = numbers.length ? `= ${numbers.join(" + ")} ${equals} ${signed(total)}` : "";
  $("live").textContent = [$("about").textContent, $("products").textContent].join(" ");
}
