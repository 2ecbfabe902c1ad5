"""The training script as a user meets it: files, accuracy, seeds, dtypes, interruption and mistakes."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import config, data, plots, rules_agree, train
from experiments.checkpoints import Checkpoints
from experiments.files import write_atomically

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
PNG = b"\x89PNG\r\n\x1a\n"


pytestmark = pytest.mark.usefixtures("as_a_user")


def command(*args: str, module: str = "experiments.train") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *args], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def small(**changes: Any) -> train.Config:
    """A run of a few seconds."""
    return dataclasses.replace(train.Config(model="article", epochs=1), **changes)


def test_the_default_run_reaches_98_percent_and_writes_its_files(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    done = command("--out", str(out))
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    assert [m["epoch"] for m in metrics] == list(range(1, 21))
    assert set(metrics[0]) == {"epoch", "train_loss", "test_loss", "test_accuracy", "learning_rate"}
    times = [json.loads(line) for line in (out / "times.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in times] == list(range(1, 21)) and times[0]["seconds"] > times[1]["seconds"] > 0
    assert summary["status"] == "finished" and summary["test_accuracy"] >= 0.98
    assert summary["test_accuracy"] == metrics[-1]["test_accuracy"] and summary["test_loss"] == metrics[-1]["test_loss"]
    assert summary["config"]["model"] == "cnn" and summary["versions"]["jax"] == jax.__version__
    assert (
        summary["device"]["platform"] == jax.default_backend()
        and summary["examples_per_second"] > 0
        and summary["seconds"] > 0
    )
    for picture in ("curve.png", "filters.png"):
        assert (out / picture).read_bytes().startswith(PNG)
    assert f"test accuracy {summary['test_accuracy']:.2%}" in done.stdout
    again = command("--out", str(out), "--epochs", "1")
    assert again.returncode == 2 and "Say --resume to continue it from step 440" in again.stdout.replace("\n", " ")
    assert json.loads((out / "summary.json").read_text()) == summary


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    losses = [train.run(small(seed=seed), QUIET)["test_loss"] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_evaluation_counts_every_example_exactly_once() -> None:
    dataset = data.load("digits")
    trainer = train.Trainer(small().resolved(), dataset)
    logits, _ = trainer.logits(trainer.params, trainer.state, trainer.images(dataset.test_images))
    exact = float(np.mean(np.argmax(np.asarray(logits), -1) == dataset.test_labels))
    shifted = np.asarray(logits) - np.max(logits, -1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    loss = -np.mean(log_p[np.arange(len(log_p)), dataset.test_labels])
    for size in (1000, 359, 100, 7):  # 359 = 3 · 100 + 59 = 51 · 7 + 2: ragged
        ours = trainer.evaluate(size)
        assert ours[1] == exact and abs(ours[0] - loss) < 1e-5


def test_the_first_examples_of_each_part_are_what_a_run_is_of(tmp_path: Path) -> None:
    digits, few, many = (config.dataset_of(train.Config(examples=count)) for count in (None, 100, 1000))
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        whole = getattr(digits, name)
        assert np.array_equal(getattr(few, name), whole[:100]) and np.array_equal(getattr(many, name), whole[:1000])
    assert len(few.test_labels) == 100 and len(many.test_labels) == 359
    summary = train.run(small(examples=100, batch_size=50, out=tmp_path), QUIET)
    assert Checkpoints(tmp_path).steps() == [2]
    found = train.evaluate(train.Config(evaluate=tmp_path), QUIET)
    assert found == (summary["test_loss"], summary["test_accuracy"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_learn(dtype: str) -> None:
    summary = train.run(small(dtype=dtype, model="cnn", epochs=4), QUIET)
    assert summary["test_accuracy"] > 0.9


@pytest.mark.parametrize("optimizer", config.OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "warmup-cosine"])
def test_every_optimizer_and_schedule_lowers_the_loss(optimizer: Any, schedule: Any) -> None:
    dataset = data.load("digits")
    trainer = train.Trainer(small(optimizer=optimizer, schedule=schedule, epochs=3).resolved(), dataset)
    before, _ = trainer.evaluate()
    *_, last = train.epochs(trainer, lambda step, loss: None)
    assert last["test_loss"] < before


def test_schedules_end_where_they_should() -> None:
    rates = {}
    for schedule in ("constant", "linear", "cosine", "warmup-cosine"):
        rate = config.learning_rate(small(schedule=schedule, learning_rate=0.5), 100)
        rates[schedule] = [round(float(rate(step)), 6) for step in (0, 10, 100)]
    assert rates["constant"] == [0.5, 0.5, 0.5]
    assert rates["linear"] == [0.5, 0.45, 0.0]
    assert rates["cosine"][0] == 0.5 and rates["cosine"][2] == 0.0
    assert rates["warmup-cosine"] == [0.0, 0.5, 0.0]


def test_a_clipped_step_is_no_longer_than_the_clip() -> None:
    dataset = data.load("digits")
    clipped = small(optimizer="sgd", learning_rate=2.0, schedule="constant", clip=1e-3)
    trainer = train.Trainer(clipped.resolved(), dataset)
    before = jax.device_get(trainer.params)
    trainer.train_batch(np.arange(64))
    moved = jax.tree.map(lambda a, b: np.sum(np.square(a - b, dtype=float)), jax.device_get(trainer.params), before)
    np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(moved))), 2.0 * 1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, but 0 < 1."),
        ({"batch_size": 0}, "1 <= batch size <= training examples, but is 0 for 1438 examples"),
        ({"batch_size": 1439}, "but is 1439 for 1438 examples of digits"),
        ({"examples": 0}, "--examples must satisfy 1 <= examples <= 1438, the training examples of digits, but is 0."),
        ({"examples": 1439}, "1 <= examples <= 1438, the training examples of digits, but is 1439."),
        ({"examples": 63}, "--examples must be at least --batch-size, but 63 < 64."),
        ({"learning_rate": -1.0}, "--learning-rate must be positive and finite, but is -1.0."),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive and finite, but is nan."),
        ({"clip": 0.0}, "--clip must be positive and finite, but is 0.0."),
        ({"label_smoothing": 1.0}, "--label-smoothing must satisfy 0 <= ε < 1, but is 1.0."),
        ({"seed": -1}, "--seed must be at least 0, but -1 < 0."),
        ({"steps_per_call": 0}, "--steps-per-call must be at least 1, but 0 < 1."),
        ({"checkpoint_every": 0}, "--checkpoint-every must be at least 1, but 0 < 1."),
        ({"devices": 5}, "--devices must satisfy 1 <= devices <= 4, those that JAX finds here, but is 5."),
        ({"devices": 3}, "--batch-size must be a multiple of all devices, but 64 % 3 = 1."),
        ({"keep": 0}, "--keep must be at least 1, but 0 < 1."),
        ({"resume": True, "overwrite": True}, "--resume continues a run and --overwrite deletes it. Say one of them."),
        ({"resume": True, "out": None}, "--resume needs a folder for checkpoints. Say --out DIR."),
        ({"checkpoint_every": 5, "out": None}, "--checkpoint-every needs a folder for checkpoints. Say --out DIR."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_named_before_any_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(train.UsageError) as error:
        train.run(small(**{"out": tmp_path / "run", **changes}), QUIET)
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_a_model_too_large_for_the_images_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    done = command("--model", "lenet5", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "error: Conv: the input is too small" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr and not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(train.UsageError, match="cannot be written"):
        train.run(small(out=tmp_path / "file" / "run"), QUIET)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_corrupt_data_file_is_named_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    wrong = gzip.compress(b"not MNIST")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(wrong)
    done = command("--data", "mnist", "--data-dir", str(tmp_path))
    assert done.returncode == 2 and "train-images-idx3-ubyte.gz" in done.stdout.replace("\n", "")
    assert (folder / "train-images-idx3-ubyte.gz").read_bytes() == wrong


def test_writing_atomically_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "summary.json"
    write_atomically(target, "old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_the_first_kernel_is_the_first_convolution() -> None:
    w = np.zeros((3, 3, 1, 8))
    assert plots.first_kernel([{}, {"scale": np.ones(2)}, {"body": [{"w": w}]}, {"w": w[:1]}]).shape == w.shape
    with pytest.raises(LookupError):
        plots.first_kernel([{"w": np.zeros((3, 3))}])


def test_four_rule_sets_draw_one_curve(tmp_path: Path) -> None:
    done = command("--steps", "25", "--out", str(tmp_path / "agree.png"), module="experiments.rules_agree")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "agree.png").read_bytes().startswith(PNG)
    assert all(rules in done.stdout for rules in rules_agree.RULES)


def test_a_rule_that_is_off_by_a_thousandth_does_not_agree(tmp_path: Path, monkeypatch: Any) -> None:
    import jaxconv.rules

    right = jaxconv.rules.RULE_SETS["textbook"]
    wrong = jaxconv.ConvRules(
        right.input_grad, lambda x, g, geometry, **options: 1.001 * right.kernel_grad(x, g, geometry, **options)
    )
    monkeypatch.setitem(jaxconv.rules.RULE_SETS, "textbook", wrong)
    worst = rules_agree.run(rules_agree.Options(steps=10, dtype="float32", out=tmp_path / "a.png"), QUIET)
    assert worst["textbook"] > 1 and worst["fast"] <= 1 and worst["rotated"] <= 1


@pytest.mark.skipif("JAXCONV_DATA" not in os.environ, reason="JAXCONV_DATA does not name a folder with MNIST")
def test_a_hundred_steps_on_mnist_learn() -> None:
    dataset = data.load("mnist", download=False)
    trainer = train.Trainer(train.Config(data="mnist", model="article", epochs=1).resolved(), dataset)
    for rows in data.batches(12_800, 128, np.random.default_rng(0)):
        trainer.train_batch(rows)
    assert trainer.step == 100 and trainer.evaluate()[1] > 0.85
