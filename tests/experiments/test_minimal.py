"""The script to copy: it runs, learns, keeps what it has learnt, is short, and is what the README shows."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from jaxconv import layers

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "minimal.py"


@pytest.mark.usefixtures("as_a_user")
def test_the_script_runs_and_leaves_what_it_has_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On fewer images; the README's block, which is run on all, says how good it becomes."""
    load: Callable[..., data.Dataset] = data.load

    def fewer(name: str) -> data.Dataset:
        whole = load(name)
        return whole._replace(train_images=whole.train_images[:320], train_labels=whole.train_labels[:320])

    monkeypatch.setattr(data, "load", fewer)
    monkeypatch.chdir(tmp_path)
    left: dict[str, Any] = runpy.run_path(str(SCRIPT))
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"^epoch .* loss (.*)$", printed, re.M)]
    accuracy = int(re.findall(r"^test accuracy (\d+)%$", printed, re.M)[0])
    assert len(losses) == 10 and losses[-1] < losses[0] / 4 and accuracy > 80
    assert printed.startswith(str(layers.summary(left["net"], (64, 8, 8, 1))))
    blank = jax.tree.map(jnp.zeros_like, (left["params"], left["state"]))
    params, state = layers.load(tmp_path / "digits.safetensors", like=blank)
    dataset = left["digits"]
    logits, _ = left["net"].apply(params, state, data.normalised(dataset.test_images, dataset))
    assert round(100 * float(np.mean(np.argmax(logits, -1) == dataset.test_labels))) == accuracy


def test_the_script_is_short_and_has_no_command_line() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 100
    assert not re.search(r"argv|argparse|tyro|__main__", text)


def test_the_readme_shows_the_script_as_it_is() -> None:
    """All but what it prints on its way."""
    code = SCRIPT.read_text().partition('"""\n\n')[2]
    kept = [line for line in code.splitlines() if "epoch {epoch" not in line and "layers.summary" not in line]
    assert kept and "```python\n" + "\n".join(kept) + "\n```" in (ROOT / "README.md").read_text()
