"""The compiled loop: step for step what single steps compute, wherever the images are and however it is cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import augmentation, data
from experiments.config import Config
from experiments.divergence import DivergedError, Watch
from experiments.pace import Pace
from experiments.streaming import fits, prefetched
from experiments.train import epochs
from experiments.trainer import Trainer
from jaxconv import layers
from jaxconv.models import MODELS

pytestmark = pytest.mark.usefixtures("as_a_user")

DIGITS = data.load("digits")
SMALL = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 1)).astype(np.uint8)
TINY = DIGITS._replace(train_images=SMALL, train_labels=np.arange(64, dtype=np.int32) % 10)


def trainer(dataset: data.Dataset = DIGITS, **changes: Any) -> Trainer:
    config = Config(model="article", epochs=2, batch_size=128, augment=("crop", "flip", "cutout"))
    return Trainer(dataclasses.replace(config, **changes).resolved(), dataset)


def assert_same(one: Trainer, other: Trainer) -> None:
    leaves = (jax.tree.leaves(jax.device_get(t.carry)) for t in (one, other))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*leaves, strict=True))


def test_steps_in_a_loop_or_begun_ahead_or_streamed_are_equal_to_single_steps(tmp_path: Path) -> None:
    """Cut anywhere; streamed from memory-mapped files. Eleven steps are an epoch."""
    single, looped, ahead = (trainer(model="cnn", loop=loop) for loop in (None, True, False))
    np.save(tmp_path / "images.npy", DIGITS.train_images)
    mapped = DIGITS._replace(train_images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    streamed = trainer(mapped, model="cnn", data_on="host")
    assert [t.data_on for t in (looped, ahead, streamed)] == ["device", "device", "host"]
    one, by_one = [], np.asarray(single.order(0))[: 11 * 128].reshape(11, 128)
    for rows in [*by_one, *np.asarray(single.order(1))[: 3 * 128].reshape(3, 128)]:
        one.append(single.train_batch(rows))
    for other in (looped, ahead, streamed):
        losses = [other.train_steps(count) for count in (1, 7, 3, 2, 1)]
        assert np.concatenate(losses).tolist() == one and len(set(one)) == 14
        assert_same(single, other)
        assert other.step == 14
    assert ahead.evaluate(100) == looped.evaluate(100) == streamed.evaluate(100)


def test_an_epoch_holds_every_example_in_an_order_of_its_own() -> None:
    ours, again, other = trainer(), trainer(), trainer(seed=1)
    orders = [np.asarray(t.order(epoch)).tolist() for t, epoch in ((ours, 0), (ours, 1), (other, 0))]
    assert all(sorted(order) == list(range(len(DIGITS.train_labels))) for order in orders)
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert np.asarray(again.order(1)).tolist() == orders[1]  # without having been asked for the one before


@pytest.mark.parametrize("changes", [{"model": "cnn", "augment": ()}, {"augment": ("crop",)}], ids=["dropout", "crop"])
def test_what_is_drawn_at_random_depends_on_the_step_and_on_nothing_before(changes: dict[str, Any]) -> None:
    ours, rows = trainer(optimizer="sgd", learning_rate=1e-30, **changes), np.arange(32)  # no weight moves
    losses = [ours.train_batch(rows) for _ in range(3)]
    ours.carry = ours.carry._replace(step=jnp.int32(1))
    assert len(set(losses)) == 3 and ours.train_batch(rows) == losses[1]


def test_images_are_standardised_and_labels_smoothed() -> None:
    ours, rows = trainer(augment=(), label_smoothing=0.25), np.arange(128)
    images = data.normalised(DIGITS.train_images[rows], DIGITS)
    np.testing.assert_allclose(ours.images(jnp.asarray(DIGITS.train_images[rows])), images, rtol=1e-5, atol=1e-6)
    logits, _ = ours.net.apply(ours.params, ours.state, images)
    smoothed = 0.75 * np.eye(10)[DIGITS.train_labels[rows]] + 0.025
    expected = -np.mean(np.sum(smoothed * np.asarray(jax.nn.log_softmax(logits)), -1))
    np.testing.assert_allclose(ours.train_batch(rows), expected, rtol=1e-5)


def test_a_row_has_the_mean_of_the_losses_and_the_rate_of_the_last_step() -> None:
    ours, losses = trainer(steps_per_call=1), list[float]()
    first, second = epochs(ours, lambda step, loss: losses.append(loss))
    assert len(losses) == 22 and len(set(losses)) == 22
    assert [first["train_loss"], second["train_loss"]] == pytest.approx([np.mean(losses[:11]), np.mean(losses[11:])])
    assert [first["learning_rate"], second["learning_rate"]] == [float(ours.schedule(step)) for step in (10, 21)]


def test_one_program_serves_any_number_of_steps() -> None:
    ours = trainer(loop=True)
    for count in (1, 4, 6):
        ours.train_steps(count)
    assert ours._loop._cache_size() == 1


def test_the_host_holds_what_the_device_cannot() -> None:
    class Device:
        def __init__(self, limit: int | None) -> None:
            self.limit = limit

        def memory_stats(self) -> dict[str, int] | None:
            return None if self.limit is None else {"bytes_limit": self.limit}

    size = DIGITS.train_images.nbytes + DIGITS.test_images.nbytes
    assert [fits(DIGITS, Device(limit)) for limit in (None, 2 * size, 2 * size - 1)] == [True, True, False]  # type: ignore[arg-type]


def test_prefetching_is_ahead_and_passes_errors_on() -> None:
    read: list[int] = []

    def batches() -> Any:
        for number in range(4):
            read.append(number)
            yield number
        raise OSError("the file has gone")

    stream, met = prefetched(batches()), []
    with pytest.raises(OSError, match="the file has gone"):
        for number in stream:
            met.append(number)
    assert met == read == [0, 1, 2, 3]
    assert list(prefetched(iter(range(7)), ahead=20)) == list(range(7))


def test_a_call_takes_about_a_second_or_what_it_is_told() -> None:
    pace = Pace(None)
    counts = []
    for seconds in (30.0, 0.01, 2.0, 1.0):  # the first compiles, the second is timed
        counts.append(pace(150))
        pace.took(counts[-1], seconds)
    assert [*counts, pace(150), pace(20)] == [1, 1, 100, 50, 50, 20]
    slow, told = Pace(None), Pace(8)
    slow.took(1, 9.0), slow.took(1, 9.0), told.took(8, 9.0)
    assert (slow(150), told(150), told(3)) == (1, 8, 3)


# Several devices


def normed(classes: int) -> layers.Layer:
    """Batch norm and dropout behind one convolution."""
    body = [layers.Conv(4, 3, bias=False), layers.BatchNorm(), layers.Activation(jax.nn.relu), layers.Dropout(0.5)]
    return layers.serial(*body, layers.Flatten(), layers.Dense(classes))


def test_four_devices_compute_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm, dropout and augmentation included; 359 images to test on are no multiple of four."""
    monkeypatch.setitem(MODELS, "article", normed)
    one, four = (trainer(devices=n, batch_size=32, optimizer="momentum") for n in (1, 4))
    np.testing.assert_allclose(four.train_steps(3), one.train_steps(3), rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(four.carry), jax.tree.leaves(one.carry), strict=True):
        assert len(ours.sharding.device_set) == 4 and ours.is_fully_replicated
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    assert four.evaluate(90)[1] == four.evaluate(359)[1] == one.evaluate()[1]
    np.testing.assert_allclose(four.evaluate(90)[0], one.evaluate()[0], rtol=1e-5)


def test_each_device_gets_a_part_of_the_batch() -> None:
    four = trainer(devices=4)
    lowered = four._step_at.lower(four.carry, *four.resident("train"), four.order(0), np.int32(0))
    assert '[{"batch"}' in lowered.as_text() or "devices=[4,1,1,1]" in lowered.as_text()
    images, _ = next(four.batches("train", np.arange(128).reshape(1, 128)))  # as they are streamed
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {32}
    convolved = [line for line in lowered.compile().as_text().splitlines() if "f32[32,6,6,8]" in line]
    assert convolved  # a quarter of 128 images, 8 filters on 8×8 without a border


# Sixteen bits


def test_an_overflow_skips_a_step_and_halves_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large a scale: no weight, moment or statistic moves until it has been halved often enough."""
    monkeypatch.setitem(MODELS, "article", normed)
    ours = trainer(TINY, dtype="float16", batch_size=32, augment=())
    scale = ours.carry.scaling._replace(scale=jnp.float32(2.0**100))
    ours.carry = ours.carry._replace(scaling=scale)
    before = jax.device_get(ours.carry)
    loss = ours.train_steps(1)
    after = jax.device_get(ours.carry)
    assert np.isfinite(loss).all() and ours.loss_scale == 2.0**99 and ours.step == 1
    for old, new in zip(before[:3], after[:3], strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, old, new))
    ours.carry = ours.carry._replace(scaling=scale._replace(scale=jnp.float32(8.0)))
    ours.train_steps(1)
    assert not np.array_equal(ours.params[0]["w"], before.params[0]["w"]) and ours.loss_scale == 8.0
    assert {leaf.dtype for leaf in jax.tree.leaves((ours.params, ours.state))} == {np.dtype("float32")}


def test_a_scale_that_nothing_makes_small_enough_is_a_divergence() -> None:
    watch = Watch("bfloat16")
    for scale in (None, 2.0**15, 1.0):
        watch.scale(scale, "step 3")
    with pytest.raises(DivergedError, match=r"at step 3 the gradients overflow float16 even .* by 0.5. Try bfloat16"):
        watch.scale(0.5, "step 3")


# Augmentation


def images(n: int = 64, size: int = 32) -> jax.Array:
    return 1 + jax.random.uniform(jax.random.key(0), (n, size, size, 3))  # no zeros


def test_a_crop_is_the_image_moved_by_up_to_four_pixels() -> None:
    x = images()
    y = np.asarray(augmentation.crop(jax.random.key(1), x))
    padded = np.pad(x, [(0, 0), (4, 4), (4, 4), (0, 0)])
    found = []
    for got, whole in zip(y, padded, strict=True):
        places = [(i, j) for i in range(9) for j in range(9) if np.array_equal(whole[i : i + 32, j : j + 32], got)]
        found.append(places)
    assert all(len(places) == 1 for places in found)
    rows, columns = zip(*(places[0] for places in found), strict=True)
    assert set(rows) == set(columns) == set(range(9)) and rows != columns


def test_a_flip_mirrors_half_of_the_images() -> None:
    x = images()
    y = augmentation.flip(jax.random.key(1), x)
    mirrored, same = (np.asarray((y == z).all((1, 2, 3))) for z in (x[:, :, ::-1], x))
    assert np.array_equal(mirrored, ~same) and 20 < mirrored.sum() < 44


def test_a_cutout_is_a_square_hole_about_any_pixel() -> None:
    x = images(n=2000, size=8)
    hole = np.asarray(augmentation.cutout(jax.random.key(1), x) == 0)
    assert np.array_equal(np.asarray(augmentation.cutout(jax.random.key(1), x))[~hole], np.asarray(x)[~hole])
    assert (hole == hole[..., :1]).all()
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    assert np.array_equal(hole[..., 0], rows[:, :, None] & columns[:, None, :])
    # 4 long, its third pixel anywhere in 0..7: from first −2 to first 5.
    expected = {tuple(first <= i < first + 4 for i in range(8)) for first in range(-2, 6)}
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in columns.tolist()} == expected


def test_augmentations_are_those_of_the_data_set_unless_others_are_named() -> None:
    assert Config(data="cifar10").resolved().augment == ("crop", "flip", "cutout")
    assert Config(data="mnist").resolved().augment == Config(data="cifar10", augment=()).resolved().augment == ()
    assert Config(data=Path("cifar10")).resolved().augment == ()  # a folder of that name
    x, key = images(8), jax.random.key(3)
    once, twice = (augmentation.augmented(key, x, names) for names in (("flip",), ("flip", "flip")))
    assert not jnp.array_equal(once, twice) and jnp.array_equal(augmentation.augmented(key, x, ()), x)
