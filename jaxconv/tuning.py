"""The fastest formulation of every convolution in a gradient, measured on the device at hand."""

from __future__ import annotations

import datetime
import functools
import json
import math
import operator
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv import primitives
from jaxconv.comparison.race import race
from jaxconv.engines import machine
from jaxconv.geometry import Geometry, Layout
from jaxconv.rules import TRIO, ConvRules, Map, is_fast, textbook
from jaxconv.rules.fast import Measured, choice
from jaxconv.rules.fast.formulation import Call
from jaxconv.rules.fast.maps import call_of
from jaxconv.rules.fast.table import Entry, Table, asked, sizes_known
from jaxconv.transforms.program import equations, leaves_of, trace
from jaxconv.windows import accumulator

# How many standard deviations of rounding a result may be off.
_ROUNDINGS = 32
# A formulation that takes so many times as long as the fastest, once, is not raced.
HOPELESS = 3.0
_FORMAT = "jaxconv rules"
# The platform, the kind of device, the version of jaxlib and the date.
_Here = tuple[str, str, str, str]


class TunedRules(ConvRules):
    """The fast rules with what `tune` measured in place of the built-in choices; a value, as every rule set is.

    Pass it as `rules=` to an op, a layer, a network, `manual` or `plan`. A call that was not measured takes the
    built-in choice, and so do all calls on another kind of device, or with another jaxlib, which is said in a warning.

    Printed, it is a table: the call, what won, its time, and how many times as long XLA's own convolution and the
    built-in choice take.

    Attributes:
      table: the measurements.
    """

    def __init__(self, table: Table) -> None:
        super().__init__(*(Measured(of, table) for of in ("input_grad", "kernel_grad", "conv")))

    @property
    def table(self) -> Table:
        return self.conv.table  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        table = self.table
        return f"TunedRules({len(table.entries)} calls, {table.device}, jaxlib {table.jaxlib}, {table.date})"

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("map", "layer", "winner", "ms", "lax", "built in")]
        for entry in self.table.entries:
            seconds = dict(entry.seconds)
            own = seconds[entry.winner]
            ratios = (f"{seconds[other] / own:.2f}" if other in seconds else "–" for other in ("lax", entry.built_in))
            rows.append((entry.call.map, layer(entry.call), entry.winner, f"{own * 1e3:.3g}", *ratios))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([repr(self), *lines])

    def save(self, path: str | Path) -> None:
        """Write the rules as JSON, for `load_rules`."""
        table = self.table
        about = {"platform": table.platform, "device": table.device, "jaxlib": table.jaxlib, "date": table.date}
        entries = [_plain(entry) for entry in table.entries]
        Path(path).write_text(json.dumps({"format": _FORMAT, **about, "entries": entries}, indent=1) + "\n")


def tune(
    f: Callable[..., Any], *args: Any, argnums: int | Sequence[int] = 0, engine: str = "auto", seconds: float = 0.2,
    budget: float = math.inf, memory: float = math.inf, progress: bool = True,
) -> TunedRules:  # fmt: skip
    """Race, on the device at hand, every formulation of every convolution in f's gradient; the winners are rules.

    The gradient is traced as `jax.grad(f, argnums)` runs it, f being what you differentiate: a loss, one under `vmap`,
    or what `manual` returns. Each different call of the three maps in it is computed by every formulation that is legal
    for it: XLA's own convolution, those of `plan` and each engine's. Its result is compared with the textbook rule's
    first; then they take turns. A winner takes the place of the built-in choice if it is ahead of it by more than the
    spread, quartile against quartile.

    Args:
      f: a function as `jax.grad` takes it.
      args: where to trace it; only shapes and dtypes matter.
      argnums: what is differentiated, as in `jax.grad`.
      engine: who may compute: "auto" or "xla", as in `conv`.
      seconds: how long to race each call, for all its candidates together.
      budget: seconds for all; calls that are not reached take the built-in choice. The largest come first. So it is
        after Ctrl-C.
      memory: bytes; a formulation that holds more beside operands and result is left out.
      progress: whether to say on stderr how far it is.

    Returns:
      `TunedRules`.

    Raises:
      ValueError: f's gradient has no convolution of this library; a limit is not positive; there is no such argument
        or engine.
      ArithmeticError: no formulation of a call is right.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> loss = lambda w, x, rules="fast": jaxconv.conv(x, w, rules=rules).sum()
      >>> rules = jaxconv.tune(loss, w, x, seconds=0.01, progress=False)
      >>> {entry.call.map for entry in rules.table.entries} == {"conv", "kernel_grad"}
      True
      >>> jax.grad(loss)(w, x, rules).shape
      (3, 3, 3, 4)

    Source: M. Frigo and S. G. Johnson, FFTW: an adaptive software architecture for the FFT (1998): a plan is measured.
    """
    function = "tune"
    if engine not in ("auto", "xla"):
        raise ValueError(f'{function}: engine must be "auto" or "xla", which leave a choice, but is {engine!r}.')
    for name, value in (("seconds", seconds), ("budget", budget), ("memory", memory)):
        if not value > 0:
            raise ValueError(f"{function}: {name} must be positive, but is {value}.")
    found = sorted(_tasks(function, f, args, argnums), key=lambda task: -task.work)
    if not found:
        raise ValueError(
            f"{function}: there is no convolution of this library in f's gradient. Of a function that uses another "
            "library's, tune what manual makes of it: tune(manual(f), ...)."
        )
    platform = jax.default_backend()
    here = platform, machine.kind(platform) or "", machine.jaxlib(), datetime.date.today().isoformat()
    entries, end = [], time.perf_counter() + budget
    try:
        for number, task in enumerate(found):
            if time.perf_counter() > end:
                break
            entries.append(_raced(task, here, engine, seconds, memory))
            if progress:
                _say(number + 1, len(found), entries[-1])
    except KeyboardInterrupt:
        if not entries:
            raise
    if len(entries) < len(found):
        print(f"jaxconv.tune: {len(entries)} of {len(found)} calls were measured", file=sys.stderr)
    return TunedRules(Table(tuple(entries), *here))


def load_rules(path: str | Path) -> TunedRules:
    """The rules that `TunedRules.save` wrote.

    Args:
      path: the file.

    Returns:
      The rules, equal to those that were saved.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not such a file.

    Example:
      >>> import jax.numpy as jnp, jaxconv, pathlib, tempfile
      >>> rules = jaxconv.tune(lambda w: jaxconv.dense(jnp.ones((2, 3)), w), jnp.ones((3, 4)), progress=False)
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "rules.json"
      >>> rules.save(path)
      >>> jaxconv.load_rules(path) == rules
      True

    Source: `tune`.
    """
    try:
        given = json.loads(Path(path).read_text())
        if given["format"] != _FORMAT:
            raise KeyError("format")
        about = (given["platform"], given["device"], given["jaxlib"], given["date"])
        if not all(isinstance(word, str) for word in about):
            raise TypeError("the device is described by words")
        entries = [_entry(given["platform"], entry) for entry in given["entries"]]
        return TunedRules(Table(tuple(entries), *about))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"load_rules: {path} holds no rules that TunedRules.save wrote: {error!r}.") from error


def layer(call: Call) -> str:
    """A call in the words of the benchmark: 8×56², 64→128, 3/2."""
    g = call.geometry

    def each(values: Sequence[int]) -> str:
        return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))

    if not g.rank:
        return f"{call.batch}, {call.inputs}→{call.outputs}"
    spatial = f"{each(g.spatial)}{'²³'[g.rank - 2] if g.rank in (2, 3) and len(set(g.spatial)) == 1 else ''}"
    options = [
        f"{n} {each(v)}" for n, v in (("dilation", g.dilation), ("input dilation", g.input_dilation)) if max(v) > 1
    ]
    options += [f"{g.groups} groups"] * (g.groups > 1)
    return ", ".join(
        [f"{call.batch}×{spatial}", f"{call.inputs}→{call.outputs}", f"{each(g.taps)}/{each(g.stride)}", *options]
    )


# What there is to race


@dataclass(frozen=True)
class _Task:
    """One call of a map, with all that its primitive was given."""

    of: Map
    call: Call
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[Any, Any]
    dtype: Any
    precision: Any

    @property
    def work(self) -> float:
        """Products."""
        call, g = self.call, self.call.geometry
        return call.batch * call.inputs * call.outputs / g.groups * math.prod(g.taps) * math.prod(g.out)

    @property
    def terms(self) -> int:
        """The most products that one entry of the result is a sum of."""
        call, g = self.call, self.call.geometry
        if self.of.name == "kernel_grad":
            return call.batch * math.prod(g.out)
        return (call.inputs if self.of.name == "conv" else call.outputs) // g.groups * math.prod(g.taps)


def _tasks(function: str, f: Callable[..., Any], args: Any, argnums: int | Sequence[int]) -> Iterator[_Task]:
    """The different calls in f's gradient."""
    program = trace(function, f, *args)
    wanted = {operator.index(n) for n in (argnums if isinstance(argnums, Sequence) else [argnums])}
    for n in wanted:
        if not -len(args) <= n < len(args):
            raise ValueError(f"{function}: argnums must count the {len(args)} arguments, but {n} is none of them.")
    wanted = {n % len(args) for n in wanted}
    counts = [len(leaves_of(function, (a,), str).arrays) for a in args]
    ends = np.cumsum([0, *counts])
    where = [
        i
        for number in sorted(wanted)
        for i in range(ends[number], ends[number + 1])
        if jnp.issubdtype(program.leaves[i].dtype, jnp.floating)
    ]

    def gradient(leaves: Sequence[Any]) -> Any:
        def value(*xs: Any) -> list[Any]:
            filled = list(leaves)
            for i, x in zip(where, xs, strict=True):
                filled[i] = x
            return [y for y in program.call(filled) if jnp.issubdtype(y.dtype, jnp.floating)]

        ys, back = jax.vjp(value, *(leaves[i] for i in where))
        return ys, back([jnp.ones_like(y) for y in ys])

    seen: dict[_Task, None] = {}
    for eqn in equations(jax.make_jaxpr(gradient)(program.leaves).jaxpr):
        of = next((of for of in TRIO if primitives.PRIMITIVES[of] is eqn.primitive), None)
        if of is not None and is_fast(eqn.params["rules"]):
            task = _task(of, eqn)
            if sizes_known(task.call):
                seen[task] = None
    return iter(seen)


def _task(of: Map, eqn: Any) -> _Task:
    a, b = (v.aval for v in eqn.invars)
    common = b.dtype if of.takes[1] == "y" else a.dtype
    dtype = eqn.params["dtype"]
    wider = dtype if of.makes == "y" and dtype != common else None
    call = call_of(of.name, a.shape, b.shape, common, eqn.params["geometry"], jax.default_backend(), "auto", wider)
    return _Task(of, asked(call), (a.shape, b.shape), (a.dtype, b.dtype), dtype, eqn.params["precision"])


# The race


def _raced(task: _Task, here: _Here, engine: str, seconds: float, memory: float) -> Entry:
    """What every formulation of a call takes, those that are wrong, too large or hopeless apart; and the winner."""
    rng = np.random.default_rng(0)
    a, b = (
        jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
        for shape, dtype in zip(task.shapes, task.dtypes, strict=True)
    )
    built_in, *others = dict.fromkeys(c.label for c in choice.candidates(replace(task.call, engine=engine)))
    programs: dict[str, Callable[[], Any]] = {}
    once: dict[str, float] = {}
    is_right = _judge(task, a, b)
    for label in (built_in, *others):
        rules = TunedRules(Table((Entry(task.call, label, built_in, ()),), *here))
        try:
            program = jax.jit(functools.partial(_computed, task, rules, engine)).lower(a, b).compile()
            held = program.memory_analysis()
            if label != built_in and held and held.temp_size_in_bytes > memory:
                continue
            if is_right(program(a, b)):
                run = functools.partial(program, a, b)
                once[label], programs[label] = _timed(run), run
        except jax.errors.JaxRuntimeError as error:  # such as more memory than there is
            print(f"jaxconv.tune: {label} fails: {str(error).splitlines()[0]}", file=sys.stderr)
    if not once:
        raise ArithmeticError(f"tune: no formulation of {task.of.name} {layer(task.call)} computes what textbook does.")
    hopeless = HOPELESS * min(once.values())
    times = race({k: run for k, run in programs.items() if k == built_in or once[k] <= hopeless}, seconds)
    quartiles = {label: statistics.quantiles(t, n=4) for label, t in times.items()}
    winner = min(quartiles, key=lambda label: quartiles[label][1])
    if built_in in quartiles and quartiles[winner][2] >= quartiles[built_in][0]:
        winner = built_in
    medians = {label: quartiles[label][1] if label in quartiles else once[label] for label in once}
    return Entry(task.call, winner, built_in, tuple(medians.items()))


def _timed(run: Callable[[], Any]) -> float:
    """Seconds of the best of three runs."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return min(taken)


def _computed(task: _Task, rules: ConvRules, engine: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return primitives.bilinear(
        task.of, a, b, task.call.geometry, rules=rules, dtype=task.dtype, precision=task.precision, engine=engine
    )


def _judge(task: _Task, a: jax.Array, b: jax.Array) -> Callable[[jax.Array], bool]:
    """Whether a result is the textbook's at every entry.

    K roundings that are as often up as down move a sum of K products, whose absolute values sum to S, by about
    √K·eps·S; a wrong tap moves it by about S / √K.
    """
    rule = jax.jit(functools.partial(getattr(textbook, task.of.name), geometry=task.call.geometry))
    wide = [jnp.asarray(x, accumulator(x.dtype)) for x in (a, b)]
    want, total = rule(*wide), rule(*map(jnp.abs, wide))
    coarse = jax.default_backend() != "cpu" and accumulator(task.dtype) == jnp.float32  # products of 10 bits
    eps = 2.0**-10 if coarse else float(jnp.finfo(want.dtype).eps)
    bound = (_ROUNDINGS * math.sqrt(task.terms) * eps + float(jnp.finfo(task.dtype).eps)) * total
    return lambda y: bool(jnp.all(jnp.abs(jnp.asarray(y, want.dtype) - want) <= bound))


# Words and files


def _say(done: int, count: int, entry: Entry) -> None:
    seconds = dict(entry.seconds)
    gain = f"{seconds[entry.built_in] / seconds[entry.winner]:.2f}" if entry.built_in in seconds else "?"
    text = f"jaxconv.tune: {done} of {count}: {entry.call.map} {layer(entry.call)}: {entry.winner}, {gain}"
    print(text, file=sys.stderr, flush=True)


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it."""
    call = asdict(entry.call)
    call.pop("platform"), call.pop("engine")
    call["dtype"] = jnp.dtype(entry.call.dtype).name
    call["result"] = None if entry.call.result is None else jnp.dtype(entry.call.result).name
    return {**call, "winner": entry.winner, "built_in": entry.built_in, "seconds": dict(entry.seconds)}


def _entry(platform: str, given: dict[str, Any]) -> Entry:
    """The inverse of `_plain`."""
    call = dict(given)
    winner, built_in, seconds = call.pop("winner"), call.pop("built_in"), call.pop("seconds")
    geometry = {name: _frozen(value) for name, value in call.pop("geometry").items()}
    geometry["layout"] = Layout(*geometry["layout"])
    dtype, result = jnp.dtype(call.pop("dtype")), call.pop("result")
    result = None if result is None else jnp.dtype(result)
    known = Call(dtype=dtype, result=result, geometry=Geometry(**geometry), platform=platform, engine="auto", **call)
    if not (sizes_known(known) and winner in seconds and isinstance(built_in, str) and min(seconds.values()) > 0):
        raise ValueError(f"the entry of {known.map} {layer(known)} is damaged")
    next(choice.candidates(known))  # a call that is none raises here
    return Entry(known, winner, built_in, tuple(seconds.items()))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
