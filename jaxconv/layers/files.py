"""Parameters in a file: what `init` makes, in the format that the tools around JAX and PyTorch read.

The format is safetensors, not npz: weights are passed around in it, and libraries of JAX, PyTorch and TensorFlow read
it; it has bfloat16, which NumPy's has not; reading it runs no code. It is small enough to be written here without its
own library: eight bytes with the length of a header, the header (JSON: dtype, shape and place of every array), and the
arrays.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {word: jnp.dtype(name) for name, word in _WORDS.items()}
_SHOWN = 5  # of what is wrong


class _Entry(NamedTuple):
    """What the header says of an array: where it lies among the others, in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write the arrays of a pytree, such as the parameters and the state of a network, to a safetensors file.

    Each is named after its place: `save(path, (params, state))` of a `serial` writes `0.2.w` for `params[2]["w"]`, and
    `save(path, params)` writes `2.w`. The file is complete or not there: it is written beside `path` and then moved.

    The format is safetensors rather than npz, since weights are passed around in it: `safetensors.flax.load_file` and
    `safetensors.torch.load_file` read it. It keeps bfloat16 as it is, which npz does not, and nothing in it is code.

    Args:
      path: the file; one of that name is replaced, and a symbolic link stays: what it points to is replaced. By custom
        it ends in `.safetensors`.
      tree: any pytree of JAX or NumPy arrays, also an optimiser's state.

    Raises:
      TypeError: a leaf is no array, or of a dtype that the format lacks, such as a key of `jax.random`.
      ValueError: two leaves have the same name, as those of `{"a": {"b": x}, "a.b": y}`; an array lies on several
        processes.
      OSError: the file cannot be written. What was there before, still is.

    Example:
      >>> import jax, pathlib, tempfile
      >>> from jaxconv import layers
      >>> net = layers.serial(layers.Conv(4, 3), layers.BatchNorm(), layers.Flatten(), layers.Dense(2))
      >>> params, state, _ = net.init(jax.random.key(0), (1, 8, 8, 1))
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
      >>> layers.save(path, (params, state))
      >>> params, state = layers.load(path, like=(params, state))
      >>> params[0]["w"].shape
      (3, 3, 1, 4)

    Source: the format's description, https://github.com/huggingface/safetensors.
    """
    arrays = {name: _to_write(name, leaf) for name, leaf in _named("save", tree).items()}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))  # and a padded header: all are aligned
    header, at = {}, 0
    for name, array in arrays.items():
        offsets = [at, at := at + array.nbytes]
        header[name] = {"dtype": _WORDS[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
    described = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    head = len(described).to_bytes(8, "little") + described
    _write_atomically(Path(os.path.realpath(path)), itertools.chain([head], (a.tobytes() for a in arrays.values())))


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """The pytree that `save` wrote: the structure of `like`, with the arrays of the file.

    Whatever the file holds must be what `like` has room for: the same names, and the shape and dtype of each.

    Args:
      path: a safetensors file, of `save` or of another program.
      like: a pytree of arrays, of which shapes and dtypes matter: what was saved, what `init` makes, or
        `jax.eval_shape(lambda key: net.init(key, shape)[:2], key)`, which computes nothing.

    Returns:
      A pytree of JAX arrays, each where its counterpart in `like` is (the device or sharding that it is committed to).

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no whole safetensors file, or has a dtype that `save` would not write; or its names, shapes or
        dtypes are not those of `like`. The message lists them.
      TypeError: a leaf of `like` is no array.

    Example:
      >>> import jax.numpy as jnp, pathlib, tempfile
      >>> from jaxconv import layers
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
      >>> layers.save(path, {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)})
      >>> layers.load(path, like={"w": jnp.zeros((2, 3)), "b": jnp.zeros(4)})  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      ValueError: load: .../weights.safetensors does not hold what `like` asks for:
        b is float32[3] in the file, but float32[4] in `like`.

    Source: `save`.
    """
    wanted = _named("load", like)
    raw = Path(path).read_bytes()
    entries, data = _parsed(path, raw)
    faults = [
        *(f"{name} is not in the file." for name in wanted if name not in entries),
        *(f"{name} is in the file only." for name in entries if name not in wanted),
    ]
    for name, leaf in wanted.items():
        entry = entries.get(name)
        if entry is not None and (entry.shape, entry.dtype) != (tuple(leaf.shape), leaf.dtype):
            here, there = _typed(entry.shape, entry.dtype), _typed(leaf.shape, leaf.dtype)
            faults.append(f"{name} is {here} in the file, but {there} in `like`.")
        elif entry is not None and jax.dtypes.canonicalize_dtype(entry.dtype) != entry.dtype:
            faults.append(f"{name} is {entry.dtype}, which JAX has only under jax_enable_x64.")
    if faults:
        more = [f"… and {len(faults) - _SHOWN} more."] * (len(faults) > _SHOWN)
        listed = "\n  ".join([*faults[:_SHOWN], *more])
        raise ValueError(f"load: {os.fspath(path)} does not hold what `like` asks for:\n  {listed}")
    leaves = []
    for name, leaf in wanted.items():
        dtype, shape, start, end = entries[name]
        array = np.frombuffer(data[start:end], dtype).reshape(shape)
        leaves.append(jax.device_put(array, _place(leaf)))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(function: str, tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their places in it."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise TypeError(f"{function}: {name or 'the tree'} must be an array, but is {leaf!r}.")
        if name in named:
            raise ValueError(f"{function}: two arrays are called {name}. Rename a key that has a dot in it.")
        if name == "__metadata__":
            raise ValueError(f"{function}: an array may not be called {name}, which the format keeps for itself.")
        named[name] = leaf
    return named


def _to_write(name: str, leaf: Any) -> np.ndarray:
    """An array as the file has it."""
    if getattr(leaf.dtype, "name", None) not in _WORDS or not getattr(leaf.dtype, "isnative", True):
        remedy = " Save jax.random.key_data of it." if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else ""
        raise TypeError(f"save: {name} has the dtype {leaf.dtype}, which the format lacks.{remedy}")
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
        raise TypeError(f"save: {name} has a shape, but no values: {leaf}.")
    if not getattr(leaf, "is_fully_addressable", True):
        raise ValueError(
            f"save: {name} lies on several processes. Gather it, by "
            "jax.experimental.multihost_utils.process_allgather, or write it by orbax."
        )
    return np.asarray(leaf)


def _parsed(path: str | os.PathLike[str], raw: bytes) -> tuple[dict[str, _Entry], memoryview]:
    """What the header of a file says, found to be possible, and the bytes that it speaks of."""
    length = int.from_bytes(raw[:8], "little")
    data = memoryview(raw)[8 + length :]
    try:
        if len(raw) < 8 + length:
            raise ValueError(f"it should have more than {8 + length} bytes, but has {len(raw)}")
        header = json.loads(raw[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError(f"its header must be a JSON object, but is a {type(header).__name__}")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, about) for name, about in header.items()}
        at = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            size = math.prod(entry.shape) * entry.dtype.itemsize
            if min(entry.shape, default=0) < 0 or (entry.start, entry.end) != (at, at + size):
                raise ValueError(f"{name} should lie at {at} to {at + size}, but lies at {entry.start} to {entry.end}")
            at = entry.end
        if at != len(data):
            raise ValueError(f"its arrays have {at} bytes, but there are {len(data)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = error if isinstance(error, ValueError) else repr(error)  # repr would show all that is no UTF-8
        raise ValueError(f"load: {os.fspath(path)} cannot be read as safetensors: {said}.") from error
    return entries, data


def _entry(name: str, about: dict[str, Any]) -> _Entry:
    """What the header says of one array."""
    dtype, shape, offsets = (about[key] for key in ("dtype", "shape", "data_offsets"))
    if dtype not in _DTYPES:
        raise ValueError(f"{name} has the dtype {dtype}, but load knows {', '.join(_DTYPES)}")
    return _Entry(_DTYPES[dtype], tuple(map(operator.index, shape)), *map(operator.index, offsets))


def _typed(shape: Iterable[int], dtype: Any) -> str:
    return f"{dtype}{list(shape)}"


def _place(leaf: Any) -> Any:
    """Where an array is committed to be, or None; a shape found while a mesh is set has no devices of its own."""
    if not getattr(leaf, "committed", isinstance(leaf, jax.ShapeDtypeStruct)):
        return None
    abstract = isinstance(getattr(leaf.sharding, "mesh", None), jax.sharding.AbstractMesh)
    return leaf.sharding.spec if abstract else leaf.sharding


def _write_atomically(path: Path, parts: Iterable[bytes]) -> None:
    """A whole file or none, even if the machine fails: written beside `path`, flushed, and moved."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: {path}: its folder {path.parent} does not exist.")
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with open(beside, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
