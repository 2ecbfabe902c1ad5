"""doctor: what is installed, and whether the rules work on this machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from jaxconv.commands.speaking import say, working
from jaxconv.engines.onednn import loading
from jaxconv.gradcheck import KINDS
from jaxconv.ops.arguments import ENGINES
from jaxconv.rules import RULE_SETS

# The evidence of the quick form: every entry, with automatic differentiation in float64.
QUICK = {"structure", "automatic"}


def add(command: Callable[..., Any]) -> None:
    """The parser, made by `command(name, run, …)`."""
    doctor = command("doctor", _doctor, help="what is installed, and do the rules work on this machine?")
    doctor.add_argument("--quick", action="store_true", help="in seconds: fewer layers, in float32, by one evidence")


def _doctor(options: Any) -> int:
    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in ("jaxconv", "jax", "jaxlib", "numpy", "optax"):
        print(f"{package} {_version(package) or 'NOT INSTALLED'}")
    optional = {p: _version(p) for p in ("matplotlib", "rich", "tyro", "scikit-learn", "flax", "pytest")}
    print("optional: " + ", ".join(f"{package} {version or 'not installed'}" for package, version in optional.items()))
    sys.stdout.flush()
    say("looking for devices")
    print("devices: " + ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()))
    print(f"rules: {', '.join(RULE_SETS)}, autodiff; engines: {', '.join(ENGINES)}")
    print(f"native engine: {_engine()}")
    float64 = "on" if jnp.asarray(0.0).dtype == jnp.float64 else "off"
    precision = jax.config.jax_default_matmul_precision or "default"  # type: ignore[attr-defined]
    print(f"float64: {float64}; matmul precision: {precision}")
    print("self-check:", flush=True)
    samples, skip = (_quick_samples(), set(KINDS) - QUICK) if options.quick else (_samples(), set())
    if not options.quick:
        say("this takes about a minute; --quick takes seconds")
    wrong = 0
    for count, (name, function, args) in enumerate(samples, 1):
        say(f"checking {count} of {len(samples)}: {name}")
        with working(f"checking {name}"):
            report = jaxconv.check(function, *args, skip=sorted(skip))
        wrong += not report.ok
        print(f"  {name}: {report.verdict if report.verdict != 'wrong' else 'WRONG'}", flush=True)
        if not report.ok:
            print(report, flush=True)
    print("all gradients are right" if not wrong else f"{wrong} gradients are WRONG: please report this output")
    return 1 if wrong else 0


def _engine() -> str:
    """What the native engine computes with, or why it is off and what turns it on."""
    if (off := loading.off()) is not None:
        return f"off: {off.text}" + (f"; to turn it on: {off.remedy}" if off.remedy else "")
    try:
        about = loading.about()
    except RuntimeError as error:  # JAX_PLATFORMS names others only
        return f"idle: JAX does not compute on the CPU here: {error}"
    return f"oneDNN {about.onednn} with {about.instruction_set} on {about.threads} thread{'s' * (about.threads > 1)}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


Sample = tuple[str, Callable[..., Any], tuple[Any, ...]]


def _samples() -> list[Sample]:
    """Small layers that between them use every primitive of the library."""

    def block(x: jax.Array, w: jax.Array, b: jax.Array, rules: str) -> jax.Array:
        return _pools(_convolution(x, w, b, rules), rules)

    samples: list[Sample] = []
    for dtype in (jnp.float32, jnp.bfloat16):
        args = _arguments(dtype, (2, 9, 8, 4), (3, 3, 2, 6), (6,))
        for rules in RULE_SETS:
            samples.append((f"{jnp.dtype(dtype).name}, rules={rules!r}", functools.partial(block, rules=rules), args))
    return samples


def _quick_samples() -> list[Sample]:
    """What compiles in a second each: the convolution under every rule set, and what is around it under the default."""
    x, w, b = _arguments(jnp.float32, (2, 5, 4, 4), (2, 2, 2, 6), (6,))
    samples: list[Sample] = [
        (f"convolution, rules={rules!r}", functools.partial(_convolution, rules=rules), (x, w, b))
        for rules in RULE_SETS
    ]
    return [*samples, ("activation, pools and padding, rules='fast'", functools.partial(_pools, rules="fast"), (x,))]


def _convolution(x: jax.Array, w: jax.Array, b: jax.Array, rules: str) -> jax.Array:
    return jaxconv.conv(x, w, b, stride=2, padding=((1, 0), (2, 1)), groups=2, rules=rules)


def _pools(x: jax.Array, rules: str) -> jax.Array:
    y = jaxconv.max_pool(jaxconv.silu(x, rules=rules), 2, stride=1, rules=rules)
    return jaxconv.avg_pool(jaxconv.pad(y, 1, mode="reflect"), 2, rules=rules)


def _arguments(dtype: Any, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)  # jax.random would compile for longer than a quick check takes
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
