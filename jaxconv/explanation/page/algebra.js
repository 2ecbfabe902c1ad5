/* The integers of a convolution and its three maps. Nothing here knows of the page.

     T(x, w, δ) = Σ_{p,k,c,o}  δ[p, o] · x[s·p + d·k − lo, c] · w[k, c, o]

   There are two ways to each gradient of T: the sum, term by term, and the recipe (dilate, pad, rotate, correlate).
   Both are computed, and compared.

   Grids are rows of numbers. A 1-D convolution is a 2-D one whose height is a point. A key is an index in array
   order, NHWC or HWIO, joined by commas: "0,1,2,0". */

const POINT = { n: 1, k: 1, s: 1, d: 1, i: 1, lo: 0, hi: 0 };
const SYMBOL = { x: "x", w: "w", delta: "δ", y: "y", dx: "∂x", dw: "∂w" };

/** Whose place in T an array's entries have: those of x and ∂x belong to the same terms, and so on. */
const SLOT = { x: "x", dx: "x", w: "w", dw: "w", y: "y", delta: "y" };

const range = (n) => Array.from({ length: Math.max(n, 0) }, (_, j) => j);
const mod = (a, b) => ((a % b) + b) % b;

/* Geometry */

/** One axis with what follows from it, named as in the library's geometry. */
function resolvedAxis(axis) {
  const { n, k, s, d, i, lo, hi } = axis;
  const length = (n - 1) * i + 1;
  const span = d * (k - 1) + 1;
  const slack = length + lo + hi - span;
  const out = slack < 0 ? 0 : Math.floor(slack / s) + 1;
  const unread = mod(slack, s);
  const reads = new Set(range(out).flatMap((p) => range(k).map((tap) => s * p + d * tap))); // counted from −lo
  return {
    ...axis, length, span, slack, out, unread, reads,
    input_grad_padding: [span - 1 - lo, span - 1 - hi + unread],
    kernel_grad_padding: [lo, hi - unread],
  };
}

/** The pairs (c, o) of channels that a kernel plane connects; `inner` counts c within its group. */
function channelPairs({ groups, inputs, outputs }) {
  return range(groups * outputs).flatMap((o) => {
    const group = Math.floor(o / outputs);
    return range(inputs).map((inner) => ({ c: group * inputs + inner, o, inner, group }));
  });
}

function resolve({ axes, groups, inputs, outputs }) {
  const rank = axes.length;
  const both = (rank === 1 ? [POINT, ...axes] : axes).map(resolvedAxis);
  const spatial = (h, w) => (rank === 1 ? [w] : [h, w]);
  return {
    rank, groups, inputs, outputs,
    axes: both,
    shown: both.slice(2 - rank),
    pairs: channelPairs({ groups, inputs, outputs }),
    empty: both.some((axis) => axis.out === 0),
    dataKey: (h, w, channel) => [0, ...spatial(h, w), channel].join(),
    kernelKey: (h, w, { inner, o }) => [...spatial(h, w), inner, o].join(),
  };
}

/** The three maps are one operation; stride, dilation and input dilation only change places. */
function recipes({ axes }) {
  const each = (f) => axes.map(f);
  const three = {
    forward: {
      read: "x", kernel: "w", result: "y", rotate: false,
      dilate: each((a) => a.i), pad: each((a) => [a.lo, a.hi]),
      spread: each((a) => a.d), step: each((a) => a.s), gives: each((a) => a.out),
    },
    input_grad: {
      read: "delta", kernel: "w", result: "dx", rotate: true,
      dilate: each((a) => a.s), pad: each((a) => a.input_grad_padding),
      spread: each((a) => a.d), step: each((a) => a.i), gives: each((a) => a.n),
    },
    kernel_grad: {
      read: "x", kernel: "delta", result: "dw", rotate: false,
      dilate: each((a) => a.i), pad: each((a) => a.kernel_grad_padding),
      spread: each((a) => a.s), step: each((a) => a.d), gives: each((a) => a.k),
    },
  };
  return { ...three, unrotated: { ...three.input_grad, rotate: false } };
}

/* Recipes */

const grid = (rows, columns, value) => range(rows).map((h) => range(columns).map((w) => value(h, w)));
const sizes = (a) => [a.length, a.length ? a[0].length : 0];
const stretched = (n, by) => (n ? (n - 1) * by + 1 : 0);
const plus = (a, b) => a.map((row, h) => row.map((value, w) => value + b[h][w]));

/** `by − 1` zeros between neighbours. */
function dilated(a, [byH, byW]) {
  const [rows, columns] = sizes(a);
  return grid(stretched(rows, byH), stretched(columns, byW), (h, w) =>
    h % byH || w % byW ? 0 : a[h / byH][w / byW]);
}

/** Zeros around; negative padding crops. */
function padded(a, [[top, bottom], [left, right]]) {
  const [rows, columns] = sizes(a);
  return grid(rows + top + bottom, columns + left + right, (h, w) => a[h - top]?.[w - left] ?? 0);
}

const rotated = (a) => a.map((row) => [...row].reverse()).reverse();

/** result[p] = Σ_k read[step·p + k] · kernel[k]. */
function correlate(read, kernel, [stepH, stepW]) {
  const [rows, columns] = sizes(read);
  const [tall, wide] = sizes(kernel);
  return grid(Math.floor((rows - tall) / stepH) + 1, Math.floor((columns - wide) / stepW) + 1, (h, w) =>
    kernel.reduce((sum, row, kh) =>
      row.reduce((part, value, kw) => part + value * read[stepH * h + kh][stepW * w + kw], sum), 0));
}

/** A recipe on one plane of what it reads and one of its kernel. */
function follow(recipe, read, kernel) {
  const turned = recipe.rotate ? rotated(kernel) : kernel;
  return correlate(padded(dilated(read, recipe.dilate), recipe.pad), dilated(turned, recipe.spread), recipe.step);
}

/* Sums */

/** Which output p reads which input q by which tap k, along one axis. */
function meetings({ n, k, s, d, i, lo, out }) {
  return range(out).flatMap((p) =>
    range(k).map((tap) => ({ p, tap, mirror: k - 1 - tap, q: (s * p + d * tap - lo) / i }))
      .filter(({ q }) => Number.isInteger(q) && q >= 0 && q < n));
}

/** Every term of T as the keys of its three factors; `mirror` is the tap an unrotated kernel would use. */
function termsOf(geometry) {
  const [rows, columns] = geometry.axes.map(meetings);
  return geometry.pairs.flatMap((pair) => rows.flatMap((h) => columns.map((w) => ({
    x: geometry.dataKey(h.q, w.q, pair.c),
    y: geometry.dataKey(h.p, w.p, pair.o),
    w: geometry.kernelKey(h.tap, w.tap, pair),
    mirror: geometry.kernelKey(h.mirror, w.mirror, pair),
  }))));
}

/** The gradients of T as sums of terms, by key. */
function sums(terms, { x, w, delta }) {
  const total = { y: {}, dx: {}, dw: {}, unrotated: {} };
  const add = (array, key, value) => { total[array][key] = (total[array][key] ?? 0) + value; };
  for (const term of terms) {
    add("y", term.y, x[term.x] * w[term.w]);
    add("dx", term.x, delta[term.y] * w[term.w]);
    add("dw", term.w, x[term.x] * delta[term.y]);
    add("unrotated", term.x, delta[term.y] * w[term.mirror]);
  }
  return total;
}

/* Numbers */

const DIGITS = { x: [1, 4, 2, 5, 3], w: [2, -1, 1, 3, -2], delta: [1, -2, 2, 3, -1] };

/** A small integer for a place, never 0: a zero on the page is one that padding or dilation has put there. */
function digit(array, ...place) {
  const mixed = place.reduce((t, j) => (t * 31 + j * 17 + 7) % 101, { x: 3, w: 69, delta: 5 }[array]);
  return DIGITS[array][(mixed * mixed) % 101 % 5];
}

/** The planes of all arrays: x, w and δ given or invented, the rest by the recipes. */
function planesOf(geometry, recipe, given) {
  const { axes: [height, width], groups, inputs, outputs, pairs } = geometry;
  const number = (array, key, ...place) => given?.[array][key] ?? digit(array, ...place);
  const x = range(groups * inputs).map((c) =>
    ({ c, group: Math.floor(c / inputs), grid: grid(height.n, width.n, (h, w) => number("x", geometry.dataKey(h, w, c), h, w, c)) }));
  const w = pairs.map((pair) =>
    ({ ...pair, grid: grid(height.k, width.k, (h, w) =>
      number("w", geometry.kernelKey(h, w, pair), h, w, pair.inner, pair.o)) }));
  const delta = range(groups * outputs).map((o) =>
    ({ o, group: Math.floor(o / outputs), grid: grid(height.out, width.out, (h, w) =>
      number("delta", geometry.dataKey(h, w, o), h, w, o)) }));
  const among = (field, plane) => w.filter((other) => other[field] === plane[field]);
  /** One plane of a map's result: the sum of what its recipe makes of pairs of planes, or zeros without output. */
  const made = (name, shape, pairsOfPlanes) => (geometry.empty
    ? grid(...shape, () => 0)
    : pairsOfPlanes.map(([read, kernel]) => follow(recipe[name], read.grid, kernel.grid)).reduce(plus));
  const outs = [height.out, width.out], sizesOfX = [height.n, width.n], taps = [height.k, width.k];
  const reached = (plane) => among("c", plane).map((kernel) => [delta[kernel.o], kernel]);
  return {
    x, w, delta,
    y: delta.map((plane) => ({
      ...plane, grid: made("forward", outs, among("o", plane).map((kernel) => [x[kernel.c], kernel])),
    })),
    dx: x.map((plane) => ({ ...plane, grid: made("input_grad", sizesOfX, reached(plane)) })),
    unrotated: x.map((plane) => ({ ...plane, grid: made("unrotated", sizesOfX, reached(plane)) })),
    dw: w.map((plane) => ({ ...plane, grid: made("kernel_grad", taps, [[x[plane.c], delta[plane.o]]]) })),
  };
}

/** The key of an entry of a plane, whichever array it is a plane of. */
function keyOf(geometry, plane, h, w) {
  return "inner" in plane ? geometry.kernelKey(h, w, plane) : geometry.dataKey(h, w, plane.c ?? plane.o);
}

/** A list of planes as numbers by key. */
function byKey(geometry, planes) {
  return Object.fromEntries(planes.flatMap((plane) =>
    plane.grid.flatMap((row, h) => row.map((value, w) => [keyOf(geometry, plane, h, w), value]))));
}

/** Where the recipes and the sums differ, or a result has not the entries of what it is the gradient of. */
function disagreements(values, total) {
  const near = (a, b) => Math.abs(a - b) <= 1e-9 * (1 + Math.abs(b)); // sums of fractions depend on their order
  const of = { y: "delta", dx: "x", unrotated: "x", dw: "w" };
  return Object.entries(of).flatMap(([array, primal]) => {
    const keys = new Set([...Object.keys(values[primal]), ...Object.keys(values[array])]);
    return [...keys].map((key) => ({ array, key, recipe: values[array][key], sum: total[array][key] ?? 0 }))
      .filter(({ key, recipe, sum }) => !near(recipe, sum) || !(key in values[primal]));
  });
}

/** Everything the page shows. `disagreement` names the first entry whose recipe and sum differ, if there is one;
    `told` is what a rule is known to do here: the numbers it was given, and by array and key what it makes wrong. */
function compute(state, told) {
  const geometry = resolve(state);
  const recipe = recipes(geometry);
  const planes = planesOf(geometry, recipe, told?.given);
  const values = Object.fromEntries(
    Object.entries(planes).map(([array, list]) => [array, byKey(geometry, list)]));
  const terms = termsOf(geometry);
  const total = sums(terms, values);
  const disagreement = disagreements(values, total)[0] ?? null;
  return { geometry, recipe, planes, values, terms, disagreement, wrong: told?.wrong ?? {} };
}
