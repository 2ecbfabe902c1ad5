"""Parameters in a file: what is saved comes back to the last bit, others read it, and what does not fit is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxconv import models
from jaxconv.layers import BatchNorm, Conv, Dense, Flatten, load, residual, save, serial
from tests.support.devices import cpu_mesh
from tests.support.refusal import refusal

KEY = jax.random.key(0)
NET = serial(Conv(3, 3), residual(serial(BatchNorm(), Conv(3, 1))), Flatten(), Dense(2))


def made() -> Any:
    params, state, _ = NET.init(KEY, (1, 4, 4, 2))
    return params, state


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """A file as the format's description has it: eight bytes, a header of so many, and the arrays."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def written(path: Path, header: Any, data: bytes) -> None:
    said = json.dumps(header).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + data)


# What comes back

TREES: dict[str, Callable[[], Any]] = {
    "parameters and state": made,
    "of a model": lambda: models.resnet18(width=2).init(KEY, (1, 8, 8, 3))[:2],
    "an optimiser's state": lambda: optax.adam(1e-3).init(made()[0]),
    "16 bits": lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16), made()),
    "every dtype": lambda: {
        str(jnp.dtype(dtype)): jnp.arange(6).reshape(2, 3).astype(dtype)
        for dtype in (
            *(jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bool_),
            *(jnp.int64, jnp.int32, jnp.int16, jnp.int8, jnp.uint64, jnp.uint32, jnp.uint16, jnp.uint8),
        )
    },
    "odd sizes": lambda: [jnp.float32(3), jnp.zeros((0, 3), jnp.bfloat16), (jnp.ones(3, jnp.int8), {"σ": jnp.ones(1)})],
    "values that are none": lambda: jnp.array([jnp.nan, -0.0, jnp.inf], jnp.float32),
    "nothing": lambda: ([], {}),
}


@pytest.mark.parametrize("name", TREES)
def test_what_is_saved_comes_back_to_the_last_bit(name: str, tmp_path: Path) -> None:
    tree = TREES[name]()
    save(tmp_path / "file", tree)
    again = load(tmp_path / "file", like=tree)
    same(again, tree)
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(again))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_network_goes_on_where_it_was(tmp_path: Path) -> None:
    params, state = made()
    path = str(tmp_path / "net.safetensors")
    save(path, (params, state))
    shapes = jax.eval_shape(lambda key: NET.init(key, (1, 4, 4, 2))[:2], KEY)
    again = load(path, like=shapes)
    x = jax.random.normal(KEY, (2, 4, 4, 2), jnp.float32)
    np.testing.assert_array_equal(NET.apply(*again, x)[0], NET.apply(params, state, x)[0])
    doubled = jax.jit(lambda p: jax.tree.map(lambda a: 2 * a, p), donate_argnums=0)(again[0])
    same(doubled, jax.tree.map(lambda a: 2 * a, params))
    same(load(path, like=shapes), (params, state))


def test_arrays_come_back_to_where_they_are_wanted(tmp_path: Path) -> None:
    x = jnp.arange(8.0)
    save(tmp_path / "file", {"x": x})
    (name,) = cpu_mesh(jax.sharding.AxisType.Auto, batch=2).axis_names
    sharding = jax.sharding.NamedSharding(cpu_mesh(jax.sharding.AxisType.Auto, batch=2), jax.P(name))
    for like in (jax.device_put(x, sharding), jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)):
        assert load(tmp_path / "file", like={"x": like})["x"].sharding == sharding
    assert not load(tmp_path / "file", like={"x": x})["x"].committed
    save(tmp_path / "file", {"x": jax.device_put(x, sharding)})
    same(load(tmp_path / "file", like={"x": x}), {"x": x})
    with jax.set_mesh(cpu_mesh(jax.sharding.AxisType.Explicit, batch=2)):
        shape = jax.eval_shape(lambda: jax.reshard(jnp.zeros(8), jax.P("batch")))
        again = load(tmp_path / "file", like={"x": shape})["x"]
        assert again.sharding == jax.reshard(x, jax.P("batch")).sharding


# The format, as others read and write it


def test_the_file_is_what_the_format_says(tmp_path: Path) -> None:
    params, state = jax.tree.map(lambda a: a.astype(jnp.bfloat16), made()[0]), made()[1]
    save(tmp_path / "file", (params, state))
    header, data = read(tmp_path / "file")
    assert set(header) == {
        *("0.0.b", "0.0.w", "0.1.body.0.bias", "0.1.body.0.scale", "0.1.body.1.b", "0.1.body.1.w", "0.3.b", "0.3.w"),
        *("1.1.body.0.mean", "1.1.body.0.var"),
    }
    said = header["0.0.w"]
    start, end = said["data_offsets"]
    assert (said["dtype"], said["shape"], end - start) == ("BF16", [3, 3, 2, 3], 2 * 54)
    upper = np.frombuffer(data[start:end], "<u2").astype(np.uint32) << 16  # bfloat16 is the upper half of a float32
    np.testing.assert_array_equal(upper.view(np.float32), np.asarray(params[0]["w"], np.float32).ravel())
    places = sorted(said["data_offsets"] for said in header.values())
    assert [places[0][0], *(end for _, end in places)] == [*(start for start, _ in places), len(data)]  # without a gap
    assert ((tmp_path / "file").stat().st_size - len(data)) % 8 == 0


def test_every_array_is_aligned(tmp_path: Path) -> None:
    """As those read them who map a file into memory and copy nothing."""
    dtypes = [jnp.int8, jnp.bfloat16, jnp.float32, jnp.float64, jnp.bool_, jnp.float16, jnp.int32]
    save(tmp_path / "file", {str(i): np.ones(3, dtype) for i, dtype in enumerate(dtypes)})
    header, data = read(tmp_path / "file")
    before = (tmp_path / "file").stat().st_size - len(data)
    for i, dtype in enumerate(dtypes):
        assert (before + header[str(i)]["data_offsets"][0]) % jnp.dtype(dtype).itemsize == 0


def test_a_file_of_another_program_is_read(tmp_path: Path) -> None:
    """With remarks, and its arrays in another order."""
    b, w = np.arange(2, dtype="<f4"), np.arange(6, dtype="<i8").reshape(2, 3)
    described = {
        "__metadata__": {"format": "np"},
        "w": {"dtype": "I64", "shape": [2, 3], "data_offsets": [8, 56]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    written(tmp_path / "file", described, b.tobytes() + w.tobytes())
    same(load(tmp_path / "file", like={"b": jnp.asarray(b), "w": jnp.asarray(w)}), {"b": b, "w": w})


def test_the_formats_own_library_agrees(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    flax = pytest.importorskip("safetensors.flax")
    params, _ = jax.tree.map(lambda a: a.astype(jnp.bfloat16), made())
    save(tmp_path / "ours", {"net": params, "step": jnp.int32(7)})
    theirs = flax.load_file(tmp_path / "ours")
    same(theirs["net.0.w"], params[0]["w"])
    assert theirs["step"] == 7
    numpy.save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "theirs")
    same(load(tmp_path / "theirs", like={"a": jnp.zeros((2, 3), jnp.float32)}), {"a": np.ones((2, 3), np.float32)})


# What is refused


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    one, f32 = jnp.ones(1), jnp.float32
    save(path, {"w": jnp.ones((2, 3), f32), "b": jnp.ones(3, jnp.bfloat16), "old": one, "same": one})
    like = {"w": jnp.ones((3, 2), f32), "b": jnp.ones(3, f32), "new": one, "same": one}
    assert refusal(lambda: load(path, like=like), ValueError) == (
        f"load: {path} does not hold what `like` asks for:\n"
        "  new is not in the file.\n"
        "  old is in the file only.\n"
        "  b is bfloat16[3] in the file, but float32[3] in `like`.\n"
        "  w is float32[2, 3] in the file, but float32[3, 2] in `like`."
    )
    many = {str(i): jnp.ones(1) for i in range(40)}
    assert refusal(lambda: load(path, like=many), ValueError).endswith("\n  12 is not in the file.\n  … and 39 more.")


def test_wide_numbers_are_not_narrowed_silently(tmp_path: Path) -> None:
    save(tmp_path / "file", {"x": np.ones(2)})
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"x is float64, which JAX has only under jax_enable_x64"),
    ):
        load(tmp_path / "file", like={"x": np.ones(2)})


UNSAVABLE: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "save: 0.w must be an array, but is 3.0.": (lambda: [{"w": 3.0}], TypeError),
    "save: k has the dtype key<fry>, which the format lacks. Save jax.random.key_data of it.": (
        lambda: {"k": KEY},
        TypeError,
    ),
    "save: z has the dtype complex64, which the format lacks.": (lambda: {"z": jnp.ones(1, jnp.complex64)}, TypeError),
    "save: x has the dtype >f4, which the format lacks.": (lambda: {"x": np.ones(1, ">f4")}, TypeError),
    "save: o has the dtype object, which the format lacks.": (lambda: {"o": np.array([None])}, TypeError),
    "save: x has a shape, but no values: ShapeDtypeStruct(shape=(2,), dtype=float32).": (
        lambda: {"x": jax.ShapeDtypeStruct((2,), jnp.float32)},
        TypeError,
    ),
    "save: two arrays are called a.b. Rename a key that has a dot in it.": (
        lambda: {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)},
        ValueError,
    ),
    "save: an array may not be called __metadata__, which the format keeps for itself.": (
        lambda: {"__metadata__": jnp.ones(1)},
        ValueError,
    ),
}


@pytest.mark.parametrize("message", UNSAVABLE)
def test_what_cannot_be_saved_is_refused_and_the_file_stays(message: str, tmp_path: Path) -> None:
    make, error = UNSAVABLE[message]
    (tmp_path / "file").write_text("before")
    assert refusal(lambda: save(tmp_path / "file", make()), error) == message
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "run" / "last"
    link.symlink_to("../elsewhere/file")
    for value in (0.0, 1.0):  # what it points to is made, and then replaced
        save(link, {"x": jnp.full(2, value)})
        assert link.is_symlink() and not (tmp_path / "elsewhere" / "file").is_symlink()
        same(load(tmp_path / "elsewhere" / "file", like={"x": jnp.ones(2)}), {"x": np.full(2, value)})
    assert len(list((tmp_path / "run").iterdir())) == len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "file", made())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "file", jax.tree.map(jnp.zeros_like, made()))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    same(load(tmp_path / "file", like=made()), made())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refusal(lambda: save(tmp_path / "no" / "file", made()), FileNotFoundError)
    assert said == f"save: {tmp_path / 'no' / 'file'}: its folder {tmp_path / 'no'} does not exist."


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


BROKEN: dict[str, tuple[Any, int]] = {
    "its arrays have 8 bytes, but there are 7": (entry(), 7),
    "its arrays have 8 bytes, but there are 9": (entry(), 9),
    "x should lie at 0 to 12, but lies at 0 to 8": (entry(shape=[3]), 8),
    "x should lie at 0 to 8, but lies at 4 to 12": (entry(data_offsets=[4, 12]), 12),
    "x should lie at 0 to -8, but lies at 0 to -8": (entry(shape=[-2], data_offsets=[0, -8]), 0),
    "x has the dtype F33, but load knows F64, F32, F16,": (entry(dtype="F33"), 8),
    "KeyError('shape')": ({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, 8),
    "its header must be a JSON object, but is a str": ("x", 8),
    "its header must be a JSON object, but is a list": ([], 0),
    "TypeError(\"'int'": ({"x": 3}, 8),
    "TypeError(\"'float'": (entry(shape=[math.inf]), 8),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_damaged_file_is_refused(fault: str, tmp_path: Path) -> None:
    header, size = BROKEN[fault]
    written(tmp_path / "file", header, bytes(size))
    with pytest.raises(ValueError, match=rf"^load: .*file cannot be read as safetensors: {re.escape(fault)}"):
        load(tmp_path / "file", like={"x": jnp.ones(2, jnp.float32)})


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    tree = made()
    save(tmp_path / "whole", tree)
    raw = (tmp_path / "whole").read_bytes()
    for size in (0, 1, 7, 8, 9, len(raw) // 3, math.ceil(len(raw) / 2), len(raw) - 1):
        (tmp_path / "part").write_bytes(raw[:size])
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            load(tmp_path / "part", like=tree)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none", like=tree)


def test_a_message_does_not_show_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes((500).to_bytes(8, "little") + b"\xff" * 500)
    assert len(refusal(lambda: load(tmp_path / "file", like=made()), ValueError)) < 200 + len(str(tmp_path))
