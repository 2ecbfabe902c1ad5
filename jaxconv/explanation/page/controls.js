/* The sliders: what they are, and the state they make. */

const MOST_CHANNELS = 6;
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
