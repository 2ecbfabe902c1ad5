"""The benchmark: its columns compute the same, its clock counts right, its command does what it says."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxconv
from experiments import machine
from experiments.benchmark import __main__ as command
from experiments.benchmark import maps, report, rows
from experiments.benchmark.layers import CONVS, POOLS, Conv, Pool
from experiments.benchmark.networks import NETWORKS
from experiments.benchmark.race import Budget, Contestant, Disagreement, agree, distance, race, ratios
from experiments.benchmark.rows import Row, Setting, conv_row, line_up, pool_row, step_row
from experiments.benchmark.steps import PER_EXAMPLE, STEPS, Network, objective
from experiments.config import UsageError
from experiments.files import as_json
from experiments.stopping import StopSignal
from tests.support.sampling import thorough

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
QUIET = Console(quiet=True)
PEERS = tuple(peer for peer in rows.installed() if peer in rows.TABLES["main"].peers)
# Equinox has networks only, and manual is about networks.
LAYERS = {"jaxconv", "jax.grad"} | {peer for peer in PEERS if peer in ("xla", "flax", "torch")}
TINY = Conv(2, (6, 6), 2, 3, 3)


pytestmark = pytest.mark.usefixtures("as_a_user")


def columns_of(row: Row, dtype: str = "float32") -> set[str]:
    """Build all columns of a row, compare them, and say which there are."""
    contestants, failed = line_up(row, Setting(dtype), PEERS)
    assert not failed
    return {name.partition("/")[0] for name in contestants}


# What is measured


def test_the_table_has_the_rows_it_promises() -> None:
    names = [row.name for row in rows.table()]
    assert len(set(names)) == len(names)
    assert {"8×56², 64→64, 3/1 kernel_grad", "8×28², 256→256, 3/1, 32 groups input_grad"} <= set(names)
    assert {"8×56², 32, 3/1, depthwise forward", "max pool 3/2, 8×112²×64, SAME backward"} <= set(names)
    assert len(names) == 3 * len(CONVS) + 3 * len(POOLS) + len(STEPS) + 1
    larger = [row.name for row in rows.table(16)]
    assert "128×56², 64→64, 3/1 kernel_grad" in larger and "ResNet-18, 512×32²×3 training step" in larger
    assert {layer.rank for layer in CONVS} == {0, 1, 2, 3}


def test_the_table_of_networks_has_layers_of_every_kind() -> None:
    names = [row.name for row in rows.network_table()]
    layers = [layer for layers in NETWORKS.values() for layer in layers]
    assert len(set(names)) == len(names) == 3 * len(layers) and len(layers) >= 60
    assert {"LeNet-5: 128×14², 6→16, 5/1 kernel_grad", "DCGAN: 32×4², 512→256, 4/2, transposed forward"} <= set(names)
    assert "LeNet-5: 256×14², 6→16, 5/1 forward" in [row.name for row in rows.network_table(2)]
    for layer in layers:
        x, w, g = (jax.ShapeDtypeStruct(shape, "float32") for shape in layer.shapes())
        assert jax.eval_shape(maps.lax_conv(layer), x, w).shape == g.shape


@pytest.mark.parametrize("program", maps.CONV_PROGRAMS)
@pytest.mark.parametrize("layer", CONVS, ids=lambda layer: layer.name)
def test_the_columns_of_a_layer_agree(layer: Conv, program: str) -> None:
    x, w, g = layer.shrunk().arrays()
    y = jax.eval_shape(maps.lax_conv(layer.shrunk()), x, w)
    assert y.shape == g.shape
    assert columns_of(conv_row(layer.shrunk(), program)) == LAYERS


@pytest.mark.parametrize("program", maps.POOL_PROGRAMS)
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.name)
def test_the_columns_of_a_pool_agree(pool: Pool, program: str) -> None:
    assert columns_of(pool_row(pool.shrunk(), program)) == LAYERS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits(dtype: str) -> None:
    for row in (conv_row(TINY, "kernel_grad"), pool_row(POOLS[1].shrunk(), "forward+backward")):
        assert columns_of(row, dtype) >= {"jaxconv", "jax.grad"}


def test_a_gradient_costs_no_forward_pass() -> None:
    """The primal result of the function that is differentiated is not computed."""
    arrays = [jnp.asarray(a) for a in TINY.arrays()]
    for program, count in (("forward", 1), ("input_grad", 1), ("kernel_grad", 1)):
        hlo = jax.jit(maps.CONV_PROGRAMS[program](maps.lax_conv(TINY))).lower(*arrays).compile().as_text()
        assert hlo.count(" convolution(") + hlo.count("custom_call_target") == count, hlo


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(dataclasses.replace(STEPS[0], optimizer="momentum"), id="with momentum"),
        *(pytest.param(step, id=step.title, marks=thorough(step.net == "cnn")) for step in STEPS),
    ],
)
def test_the_columns_of_a_training_step(network: Network) -> None:
    assert columns_of(step_row(network.shrunk())) == {"jaxconv", "jax.grad", *PEERS}


def test_per_example_gradients() -> None:
    assert columns_of(rows.per_example_row(PER_EXAMPLE.shrunk())) == {"jaxconv", "jax.grad"} | ({"xla"} & set(PEERS))


@pytest.mark.parametrize("network", STEPS, ids=lambda network: network.title)
def test_flax_has_the_same_network(network: Network) -> None:
    """The same loss from the same parameters; with dropout, in inference."""
    peers_flax = pytest.importorskip("experiments.benchmark.peers_flax", exc_type=ImportError)
    small, train = network.shrunk(), network.net != "cnn"
    params, state, x, labels = small.arrays()
    module, theirs, their_state = peers_flax.twin(small.net, dict(small.options), params, state, x, train=train)
    ours = jax.jit(objective(small.layer(), "fast", train=train))(params, state, x, labels, jax.random.key(0))
    loss = jax.jit(peers_flax.objective(module))(theirs, their_state, x, labels, jax.random.key(0))
    np.testing.assert_allclose(loss[0], ours[0], rtol=1e-5)
    assert jax.tree.map(jnp.shape, loss[1]) == jax.tree.map(jnp.shape, peers_flax.renamed(ours[1]))


@pytest.mark.parametrize(
    "network", [pytest.param(step, id=step.title, marks=thorough(step.net != "resnet18")) for step in STEPS]
)
def test_equinox_has_the_same_network(network: Network) -> None:
    """The same loss from the same parameters, channels first; with dropout, in inference."""
    peers_equinox = pytest.importorskip("experiments.benchmark.peers_equinox", exc_type=ImportError)
    small, train = network.shrunk(), network.net != "cnn"
    params, state, x, labels = small.arrays()
    module, their_state = peers_equinox.twin(small.net, dict(small.options), params, small.image)
    module = module if train else peers_equinox.eqx.nn.inference_mode(module)
    ours = jax.jit(objective(small.layer(), "fast", train=train))(params, state, x, labels, jax.random.key(0))
    loss, theirs = peers_equinox.objective(module)
    found = jax.jit(loss)(theirs, their_state, peers_equinox.images(x), labels, jax.random.key(0))
    np.testing.assert_allclose(found[0], ours[0], rtol=1e-5)


@pytest.mark.parametrize("peer", rows.TWINS)
@pytest.mark.parametrize(
    "network", [pytest.param(step, id=step.title, marks=thorough(step.net == "cnn")) for step in STEPS]
)
def test_manual_changes_no_step_of_another_library(network: Network, peer: str) -> None:
    """The loss and the gradient of every parameter."""
    pytest.importorskip(peer, exc_type=ImportError)
    params, state, x, labels = network.shrunk().arrays()
    loss, *arrays = rows.TWINS[peer](network.shrunk(), params, state, x)
    args = (*arrays, labels, jax.random.key(0))
    found, expected = (jax.jit(jax.value_and_grad(f, has_aux=True))(*args) for f in (jaxconv.manual(loss), loss))
    assert distance(found, expected) < 1e-4


@pytest.mark.parametrize("network", STEPS, ids=lambda network: network.title)
def test_torch_has_the_same_network(network: Network) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmark import nets_torch, peers_torch

    small, train = network.shrunk(), network.net != "cnn"
    params, state, x, labels = small.arrays()
    module = nets_torch.twin(small.net, dict(small.options), params, small.image).train(train)
    ours, _ = jax.jit(objective(small.layer(), "fast", train=train))(params, state, x, labels, jax.random.key(0))
    with torch.no_grad():
        logits = module(peers_torch.images(x, "float32", "channels_last"))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    np.testing.assert_allclose(float(loss), ours, rtol=1e-5)


def flax_size(network: Network, params: Any, state: Any) -> int:
    x = jax.ShapeDtypeStruct((1, *network.image), jnp.float32)
    _, own, _ = peer_module("flax").twin(network.net, dict(network.options), params, state, x, train=True)
    return sum(a.size for a in jax.tree.leaves(own))


def equinox_size(network: Network, params: Any, state: Any) -> int:
    peers_equinox = peer_module("equinox")

    def own(params: Any) -> Any:
        module, _ = peers_equinox.twin(network.net, dict(network.options), params, network.image)
        return peers_equinox.objective(module)[1]

    return sum(a.size for a in jax.tree.leaves(jax.eval_shape(own, params)))


def torch_size(network: Network, params: Any, state: Any) -> int:
    nets_torch = peer_module("torch")
    with nets_torch.torch.device("meta"):
        module = nets_torch.NETS[network.net](network.image, **dict(network.options))
        return sum(p.numel() for p in module.parameters())


def peer_module(peer: str) -> Any:
    """Where a peer's networks are, if it is installed."""
    name = {"flax": "peers_flax", "equinox": "peers_equinox", "torch": "nets_torch"}[peer]
    return pytest.importorskip(f"experiments.benchmark.{name}", reason=f"{peer} is not installed", exc_type=ImportError)


@pytest.mark.parametrize("size", [flax_size, equinox_size, torch_size], ids=["flax", "equinox", "torch"])
@pytest.mark.parametrize("network", STEPS, ids=lambda network: network.title)
def test_the_networks_that_are_raced_have_the_same_parameters(network: Network, size: Callable[..., int]) -> None:
    """In full size, without arrays; a twin refuses parameters that are not all of its own."""
    shape = (1, *network.image)
    params, state = jax.eval_shape(lambda: network.layer().init(jax.random.key(0), shape)[:2])
    assert size(network, params, state) == sum(a.size for a in jax.tree.leaves(params))


@pytest.mark.parametrize("peer", ["flax", "equinox", "torch"])
def test_a_twin_with_other_parameters_is_refused(peer: str) -> None:
    wide, narrow = (dataclasses.replace(STEPS[1].shrunk(), options={"width": width}) for width in (4, 2))
    params, state, x, _ = wide.arrays()
    twin = partial(peer_module(peer).twin, "resnet18", dict(narrow.options), params)
    image = partial(twin, narrow.image)
    rest = {"flax": partial(twin, state, x, train=True), "equinox": image, "torch": image}
    with pytest.raises(ValueError, match="twin of resnet18 has other param"):
        rest[peer]()


# Agreement


def test_distance() -> None:
    one = np.ones((3, 4), np.float32)
    assert distance(one, one) == 0 == distance([0 * one], [0 * one])
    assert distance(1.01 * one, one) == pytest.approx(0.01)
    assert distance([one, 1.1 * one], [one, one]) == pytest.approx(0.1)
    assert distance([one, 1e-9 * one], [one, 0 * one]) < 1e-5  # as good as nothing beside the rest
    assert distance(one[:2], one) == math.inf
    for wrong in (np.nan * one, np.inf * one):
        assert not distance([one, wrong], [one, one]) <= 1


def test_a_column_that_computes_something_else_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Disagreement, match=r"flax computes something else: result differs by 5\.0e-01 > 1e-04"):
        agree("flax", {"result": np.full(3, 1.5)}, {"result": np.ones(3)}, 1e-4)
    right = maps.jaxconv_conv
    monkeypatch.setattr(maps, "jaxconv_conv", lambda *a: lambda x, w: right(*a)(x, w[::-1]))
    outcome = rows.measure(conv_row(TINY, "forward"), Setting(), (), command.QUICK)
    assert "ms" not in outcome
    assert outcome["failed"]["jaxconv"].startswith("Disagreement: jaxconv computes something else: result differs by")
    assert report.summary([outcome])["failed"] == [outcome["row"]]


def test_a_peer_that_fails_costs_only_its_own_column() -> None:
    row = conv_row(TINY, "forward")

    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        if column == "flax":
            raise NotImplementedError("not on this device")
        return row.build(column, setting)

    outcome = rows.measure(dataclasses.replace(row, build=build), Setting(), ("flax",), command.QUICK)
    assert outcome["failed"] == {"flax": "NotImplementedError: not on this device"}
    assert outcome["ms"].keys() == {"jaxconv", "jax.grad"}


def test_the_column_xla_is_compiled_without_the_engine() -> None:
    def formulations() -> set[str]:
        return {c.formulation for c in jaxconv.plan((2, 4, 6, 6, 8), (2, 3, 3, 8, 8), platform="cpu")}

    with rows.native(False):
        without = formulations()
    assert without == {"lax", "patches"}
    assert (formulations() != without) == ("xla" in rows.installed())


# The clock


class Clock:
    """Time that passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now, self.turns = 0.0, list[str]()

    def work(self, name: str, seconds: Iterator[float]) -> Contestant:
        def call() -> None:
            self.now += next(seconds)
            self.turns.append(name)

        return Contestant(call, lambda _: None, None)

    def race(self, contestants: dict[str, Contestant], budget: Budget) -> dict[str, list[float]]:
        self.turns.clear()
        return race(contestants, budget, pipelined=False, clock=lambda: self.now, sleep=lambda s: None)


def test_the_race_measures_seconds_and_changes_its_order() -> None:
    clock = Clock()
    steady = {name: clock.work(name, itertools.repeat(s)) for name, s in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    times = clock.race(steady, Budget(seconds=0, least=6, most=9))
    assert times == {"a": [1.0] * 6, "b": [2.0] * 6, "c": [3.0] * 6}
    assert "".join(clock.turns[3:]) == "abcbcacab" + "cbaacbbac"
    assert len(clock.race(steady, Budget(seconds=1e9, least=1, most=4))["a"]) == 4
    assert len(clock.race(steady, Budget(seconds=13.0, least=1, most=9))["a"]) == 3


def test_short_calls_are_repeated_and_warmed_up() -> None:
    clock = Clock()
    times = clock.race({"a": clock.work("a", itertools.repeat(2.5e-3))}, Budget(0, 2, 2))
    assert times["a"] == pytest.approx([2.5e-3] * 2) and len(clock.turns) == 1 + 2 * (1 + 4)


def test_calls_that_overlap_are_counted_as_they_overlap() -> None:
    """A call works 1 ms, and one waits 1 ms for however many are under way: a turn of 10 ms holds nine, not five."""
    clock = Clock()

    def wait(_: Any) -> None:
        clock.now += 1e-3

    one = dataclasses.replace(clock.work("a", itertools.repeat(1e-3)), wait=wait)
    times = race({"a": one}, Budget(0, 1, 1), pipelined=True, clock=lambda: clock.now, sleep=lambda s: None)
    assert times["a"] == pytest.approx([10e-3 / 9]) and len(clock.turns) == 1 + (1 + 5) + (1 + 9)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down tenfold slows both, and leaves the ratio alone."""
    ours = [1.0, 10.0, 1.0, 10.0, 1.0]
    assert ratios([2 * t for t in ours], ours) == {"median": 2.0, "p10": 2.0, "p90": 2.0}
    assert ratios([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == pytest.approx({"median": 3.0, "p10": 1.4, "p90": 4.6})


# The command


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of three tiny rows."""
    table = tuple(conv_row(TINY, program) for program in maps.CONV_PROGRAMS)
    monkeypatch.setitem(rows.TABLES, "main", rows.TABLES["main"]._replace(of=lambda batch: table))


def options(out: Path, **changes: Any) -> command.Options:
    return dataclasses.replace(command.Options(quick=True, out=out / "deep", columns=()), **changes)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_kept_as_they_are_written(path: Path) -> None:
    text = path.read_text()
    assert as_json(json.loads(text)) + "\n" == text


def test_a_row_of_results_is_a_line() -> None:
    rows = [{"row": f"{n}×{n}²", "ms": {"median": n / 7, "of": ["long"] * 40}} for n in range(3)]
    content = {"machine": {"cores": 2}, "rows": rows, "none": [], "summary": {row["row"]: row["ms"] for row in rows}}
    lines = as_json(content).splitlines()
    assert json.loads("".join(lines)) == content
    assert lines[1] == ' "machine": {"cores": 2},' and ' "none": [],' in lines
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith('  {"row"')] == rows


@pytest.mark.usefixtures("small_rows")
def test_a_run_writes_its_report_and_its_picture(tmp_path: Path) -> None:
    console = Console(record=True, width=140)
    assert command.run(options(tmp_path, filter="2x6.*forward", columns=None), console) == 0
    content = json.loads((tmp_path / "deep" / "benchmark.json").read_text())
    assert content.keys() == {"command", "machine", "table", "dtype", "engine", "batch", "quick", "rows", "summary"}
    assert content["machine"].keys() >= {"date", "processor", "cores", "device", "python", "jax", "jaxlib", "jaxconv"}
    assert content["machine"]["jax"] == jax.__version__ and content["machine"].keys() >= {"flax", "torch"}
    assert ("driver" in content["machine"]) == (jax.default_backend() == "gpu")
    (row,) = content["rows"]
    assert row["row"] == "2×6², 2→3, 3/1 forward" and row["rounds"] >= 2 and not row["failed"] and row["date"]
    assert row["ms"].keys() == LAYERS
    assert row["ratio"].keys() == LAYERS - {"jaxconv"}
    for spread in (*row["ms"].values(), *row["ratio"].values()):
        assert 0 < spread["p10"] <= spread["median"] <= spread["p90"]
    assert row["temporary_bytes"].keys() == row["compile_seconds"].keys() == LAYERS - {"torch"}
    assert row["variant"].keys() == {"torch"} & set(PEERS)
    assert content["summary"]["geometric_mean"].keys() == LAYERS - {"jaxconv"}
    assert (tmp_path / "deep" / "benchmark.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    printed = console.export_text()
    assert "2×6², 2→3, 3/1 forward" in printed and "geometric mean of their time / ours: jax.grad" in printed


@pytest.mark.usefixtures("small_rows")
def test_rows_of_an_earlier_run_stay_unless_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "benchmark.json"
    assert command.run(options(tmp_path, filter="kernel_grad|input_grad"), QUIET) == 0
    before = json.loads(path.read_text())["rows"]
    assert command.run(options(tmp_path, filter="forward|kernel_grad"), QUIET) == 0
    after = json.loads(path.read_text())["rows"]
    assert [row["row"].rpartition(" ")[2] for row in after] == ["forward", "input_grad", "kernel_grad"]
    assert after[1] == before[0] and after[2] != before[1]
    with pytest.raises(UsageError, match="holds rows of another machine, version or option"):
        command.run(options(tmp_path, dtype="float16"), QUIET)
    assert json.loads(path.read_text())["rows"] == after
    path.write_text("[]")
    with pytest.raises(UsageError, match="is not a report of this program"):
        command.run(options(tmp_path), QUIET)


@pytest.mark.usefixtures("small_rows")
def test_an_interrupted_run_keeps_the_rows_that_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = command.measure

    def interrupted(row: Row, *rest: Any) -> dict[str, Any]:
        if "input_grad" in row.name:
            raise StopSignal(signal.SIGTERM)
        return measure(row, *rest)

    monkeypatch.setattr(command, "measure", interrupted)
    assert command.run(options(tmp_path), QUIET) == 143
    assert_only_forward(tmp_path)


@pytest.mark.usefixtures("small_rows")
def test_a_run_asks_between_rows_whether_to_stop(tmp_path: Path) -> None:
    answers = iter([None, StopSignal(signal.SIGTERM)])

    def stop() -> None:
        if answer := next(answers):
            raise answer

    assert command.run(options(tmp_path), QUIET, stop) == 143
    assert_only_forward(tmp_path)


def assert_only_forward(tmp_path: Path) -> None:
    assert [row["row"] for row in json.loads((tmp_path / "deep" / "benchmark.json").read_text())["rows"]] == [
        "2×6², 2→3, 3/1 forward"
    ]
    assert (tmp_path / "deep" / "benchmark.png").exists()


@pytest.mark.usefixtures("small_rows")
def test_a_failed_row_is_said_and_is_in_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "jaxconv_conv", lambda layer, engine: lambda x, w: 2 * maps.lax_conv(layer)(x, w))
    console = Console(record=True, width=140)
    assert command.run(options(tmp_path, filter="forward"), console) == 1
    assert "jaxconv computes something else" in console.export_text()
    assert not (tmp_path / "deep" / "benchmark.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter": "9×9"}, r"--filter '9×9' matches none of the \d+ rows. --list names them"),
        ({"filter": "("}, r"--filter '\(' is not a regular expression"),
        ({"columns": ("caffe",)}, "--columns caffe: is not installed"),
        ({"seconds": 0.0}, "--seconds must be positive, but 0.0 <= 0"),
        ({"batch": 0}, "--batch must be positive, but 0 <= 0"),
    ],
)
def test_a_run_that_cannot_start_says_why(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command.run(options(tmp_path, **changes), QUIET)
    assert not (tmp_path / "deep").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file")
    with pytest.raises(UsageError, match="cannot be used"):
        command.run(options(tmp_path), QUIET)


def test_the_list_and_the_ascii_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", "--list", "--filter", "8x56.*64->64.*kernel"])
    assert command.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "8×56², 64→64, 3/1 kernel_grad", "8×56², 64→64, 3/1, dilation 2 kernel_grad",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["benchmark", "--list", "--table", "networks", "--filter", "LeNet-5: 128, 120"])
    assert command.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr("sys.argv", ["benchmark", "--filter", "nothing like this"])
    assert command.main() == 2 and "matches none of the" in capsys.readouterr().out


def test_the_summary_names_the_worst_the_slow_and_the_large() -> None:
    def row(name: str, ratio: float, ours: int, theirs: int) -> dict[str, Any]:
        spread = {"median": ratio, "p10": ratio, "p90": ratio}
        return {
            "row": name, "failed": {}, "ms": {}, "ratio": {"jax.grad": spread, "torch": spread},
            "temporary_bytes": {"jaxconv": ours, "jax.grad": theirs},
        }  # fmt: skip

    table = [row("fast", 8.0, 10, 10), row("slow", 0.5, 126, 100), row("even", 0.96, 125, 100)]
    found = report.summary(table)
    assert found["geometric_mean"] == pytest.approx(dict.fromkeys(("jax.grad", "torch"), (8 * 0.5 * 0.96) ** (1 / 3)))
    assert found["worst"] == "slow" and found["slower"] == {"slow": 0.5} and list(found["larger"]) == ["slow"]
    assert "below 0.95: 1" in report.summary_lines(table)


def test_the_machine_names_packages_that_are_not_there() -> None:
    found = machine.machine("jax", "no-such-package")
    assert found["jax"] == jax.__version__ and found["no-such-package"] is None
