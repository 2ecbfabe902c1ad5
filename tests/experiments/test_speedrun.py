"""The speedrun on a slice: its parts do what they say, its loss falls, and it says whether the goal is reached."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import data, speedrun
from experiments.speedrun import (
    Config,
    accuracy,
    check,
    identity,
    mirrored,
    moved,
    network,
    objective,
    optimizer,
    rescaled,
    run,
    shown,
    training,
    whitening,
)
from jaxconv import conv
from jaxconv.layers import Conv, Dense, Flatten, serial

pytestmark = pytest.mark.usefixtures("as_a_user")

KEY = jax.random.key(0)
SMALL = Config(seeds=2, epochs=3, batch_size=32, widths=(8, 8))


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose colour is its class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n).astype(np.int32)
    colours = np.random.default_rng(7).integers(0, 256, (10, 3))
    noise = rng.normal(0, 25, (n, 32, 32, 3))
    return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def few() -> data.Dataset:
    classes = tuple("0123456789")
    return data.Dataset("cifar10", *coloured(96, 0), *coloured(50, 1), classes, (0.5,) * 3, (0.25,) * 3, 255)


def images(*shape: int) -> jax.Array:
    return jax.random.normal(KEY, shape, jnp.float32)


# Its parts


def test_whitened_patches_are_uncorrelated() -> None:
    mixed = images(40, 9, 8, 3) @ jnp.array([[1.0, 0.9, 0.3], [0.0, 0.5, 0.3], [0.0, 0.0, 0.2]])
    kernel = whitening(mixed, eps=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    y = np.asarray(conv(mixed, kernel, padding="VALID")).reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=1e-3)
    np.testing.assert_array_equal(y[:, 12:], -y[:, :12])


def test_a_kernel_starts_by_handing_on_channels() -> None:
    x = images(2, 5, 6, 4)
    y = conv(x, identity(KEY, (3, 3, 4, 6), jnp.float32))
    np.testing.assert_array_equal(y[..., :4], x)
    assert np.std(y[..., 4:]) > 0.3
    np.testing.assert_array_equal(conv(x, identity(KEY, (3, 3, 4, 3), jnp.float32)), x[..., :3])


def test_images_are_shifted_and_mirrored_each_on_its_own() -> None:
    x = images(64, 6, 7, 2)
    wide = np.pad(np.asarray(x), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    places = [
        [at for at in np.ndindex(5, 5) if (wide[n, at[0] : at[0] + 6, at[1] : at[1] + 7] == y).all()]
        for n, y in enumerate(np.asarray(moved(x, KEY, 2)))
    ]
    assert all(len(at) == 1 for at in places) and len({at for (at,) in places}) > 15
    np.testing.assert_array_equal(moved(x, KEY, 0), x)
    which = jnp.arange(64) % 3 == 0
    turned = mirrored(x, which)
    np.testing.assert_array_equal(turned[which], np.asarray(x)[which, :, ::-1])
    np.testing.assert_array_equal(turned[~which], x[~which])


def test_an_epoch_shows_the_other_side_of_each_image_in_an_order_of_its_own() -> None:
    x, sides = images(70, 4, 5, 1), jnp.arange(70) % 3 == 0
    still = dataclasses.replace(SMALL, shift=0)
    seen, rows = zip(*(shown(still, KEY, epoch, x, sides) for epoch in range(3)), strict=True)
    for epoch, which in enumerate((sides, ~sides, sides)):
        np.testing.assert_array_equal(seen[epoch], mirrored(x, which))
        order = np.asarray(rows[epoch])
        assert order.shape == (2, 32) and len(np.unique(order)) == 64  # the other 6 fill no batch
        assert all((order == other).mean() < 0.2 for other in (np.arange(64).reshape(2, 32), rows[epoch - 1]))
    shifted = [np.asarray(shown(SMALL, KEY, epoch, x, sides)[0]) for epoch in (0, 2)]
    assert (shifted[0] != shifted[1]).any((1, 2, 3)).mean() > 0.8


def test_the_loss_has_smoothed_labels_and_no_gradient_in_the_kernel_that_whitens() -> None:
    net = serial(Conv(4, 2), Flatten(), Dense(3))
    x, labels = images(5, 4, 4, 1), jnp.arange(5) % 3
    params, state, _ = net.init(KEY, x.shape)
    (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(params, state, x, labels, net, 0.2)
    log = jax.nn.log_softmax(net.apply(params, state, x)[0])
    assert float(loss) == pytest.approx(-float((0.8 * log[jnp.arange(5), labels] + 0.2 * log.mean(1)).mean()), rel=1e-5)
    assert {(i, name): bool(g.any()) for i, layer in enumerate(grads) for name, g in layer.items()} == {
        (0, "w"): False, (0, "b"): True, (2, "w"): True, (2, "b"): True,
    }  # fmt: skip


def test_an_image_and_its_mirror_image_are_judged_together() -> None:
    """Logits of (left, right) are (5·left − 4·right, 0): of both sides together, (left + right, 0) / 2."""
    net = serial(Flatten(), Dense(2, bias=False))
    params = [{}, {"w": jnp.array([[5.0, 0.0], [-4.0, 0.0]])}]
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).reshape(4, 1, 2, 1)
    for labels, right in (([0, 0, 1, 1], 1), ([0, 0, 1, 0], 0.75)):
        assert float(accuracy(net, params, [{}, {}], x, jnp.array(labels), batch_size=3)) == right


def test_the_network_is_the_fields() -> None:
    net = network(Config(), jnp.zeros((2, 2, 3, 24)), 10)
    params = jax.eval_shape(lambda key: net.init(key, (1, 32, 32, 3))[0], KEY)
    assert [p["w"].shape for p in params if "w" in p] == [
        (2, 2, 3, 24), (3, 3, 24, 64), (3, 3, 64, 64), (3, 3, 64, 256), *[(3, 3, 256, 256)] * 3, (256, 10),
    ]  # fmt: skip
    assert sum(a.size for a in jax.tree.leaves(params)) == 24 + 2 * 2 * (64 + 256 + 256) + sum(
        math.prod(p["w"].shape) for p in params if "w" in p
    )


def test_muon_turns_the_kernels_by_as_much_as_is_said_and_adam_moves_the_rest() -> None:
    params, _, _ = network(SMALL, jnp.ones((2, 2, 3, 24)), 10).init(KEY, (1, 32, 32, 3))
    params = rescaled(params)
    update = optimizer(SMALL, 10)
    grads = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape, p.dtype), params)
    grads[0]["w"] = jnp.zeros_like(grads[0]["w"])  # it is not trained
    updates, _ = update.update(grads, update.init(params), params)
    assert not updates[0]["w"].any()
    for p, u in zip(params[2:], updates[2:], strict=True):
        for name in p:
            is_kernel = p[name].ndim == 4
            # Orthogonal rows, within what a few steps of Newton and Schulz leave; or Adam's first step.
            of = np.linalg.norm(u[name]) / (np.linalg.norm(p[name]) if is_kernel else np.sqrt(u[name].size))
            rate = SMALL.learning_rate if is_kernel else SMALL.rate_of_others
            assert 0.6 * rate < of < 1.6 * rate, (name, p[name].shape, of)
    lengths = [float(jnp.linalg.norm(p["w"])) for p in params if "w" in p]
    assert lengths[1:-1] == pytest.approx([np.sqrt(8)] * 4, rel=1e-5) and lengths[0] == pytest.approx(np.sqrt(12 * 24))


# The whole


def test_a_training_goes_through_what_its_epochs_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a loss that says what it was given, of weights that stay: the left edge of a batch, and its smoothing."""

    def left_edge(params: Any, state: Any, x: jax.Array, labels: jax.Array, net: Any, smoothing: float) -> Any:
        unmoved = 0 * sum(w.sum() for w in jax.tree.leaves(params))
        return x[:, :, 0].mean() + labels.sum() + smoothing + unmoved, state

    monkeypatch.setattr(speedrun, "objective", left_edge)
    x, labels = images(70, 4, 4, 1), jnp.arange(70) % 10
    arrays = (x, labels, x[:5], labels[:5])
    _, losses = jax.jit(training(SMALL, serial(Flatten(), Dense(10)), 70))(KEY, arrays)
    _, run_key, side = jax.random.split(KEY, 3)
    sides = jax.random.bernoulli(side, 0.5, (70,))
    expected = []
    for epoch in range(SMALL.epochs):
        seen, rows = shown(SMALL, run_key, epoch, x, sides)
        expected += [seen[batch][:, :, 0].mean() + labels[batch].sum() + SMALL.label_smoothing for batch in rows]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert SMALL.label_smoothing > 0 and 0.2 < sides.mean() < 0.8 and len(set(losses.tolist())) == 6


def test_a_few_steps_learn_from_every_seed_and_say_so() -> None:
    console = Console(record=True, width=200)
    found = run(SMALL, few(), console)
    assert len(found["losses"]) == 9 and np.isfinite(found["losses"]).all()
    assert found["losses"][-1] < found["losses"][0] - 0.3
    assert len(found["accuracies"]) == 2 and min(found["accuracies"]) > 0.2 and found["mean"] < 1
    printed = console.export_text()
    losses = re.findall(r"^seed +[01]   \d+\.\d\d%   .* s   loss (.*) to (.*)$", printed, re.M)
    assert len(set(losses)) == 2 and float(losses[1][1]) == pytest.approx(found["losses"][-1], abs=1e-3)
    assert "over 2 seeds" in printed and "10 seeds are needed for 94.0%" in printed


def test_the_verdict() -> None:
    assert speedrun.verdict(0.9401, 10) == "94.0% reached" and speedrun.verdict(0.9399, 40) == "94.0% missed"
    assert "needed" in speedrun.verdict(0.99, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, but 0 < 1."),
        ({"seeds": 0}, "--seeds must be at least 1, but 0 < 1."),
        ({"batch_size": 97}, "--batch-size must be at most 96, the images there are, but is 97."),
        ({"shift": -1}, "--seed and --shift must be at least 0, but are 0 and -1."),
    ],
)
def test_what_cannot_run_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check(dataclasses.replace(SMALL, **changes), 96)
