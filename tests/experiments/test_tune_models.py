"""The networks are tuned and raced; the rules that are written train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments import train, trainer, tune_models
from jaxconv import load_rules, softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("as_a_user")


def test_rules_of_a_network_are_written_and_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = tune_models.Options(
        ("lenet5",), "xla", seconds=0.002, race_seconds=0.01, small=True, out=tmp_path / "tuned"
    )
    (row,) = tune_models.main(options, Console(quiet=True))
    assert row["model"] == "lenet5" and row["calls"] == 14 and 0 <= row["changed"] <= 14
    assert set(row["ms"]) == {"tuned", "built-in", "jax.grad"}
    assert json.loads((tmp_path / "tuned" / "tuned.json").read_text())["rows"] == [row]
    rules = load_rules(tmp_path / "tuned" / "lenet5.json")
    assert len(rules.table.entries) == 14 and "onednn" not in str(rules)
    used: list[Any] = []

    def loss(*args: Any, rules: Any, **options: Any) -> Any:
        used.append(rules)
        return softmax_cross_entropy(*args, rules=rules, **options)

    monkeypatch.setattr(trainer, "softmax_cross_entropy", loss)
    summary = train.run(
        train.Config(data="digits", epochs=1, rules=tmp_path / "tuned" / "lenet5.json"), Console(quiet=True)
    )
    assert used[0] == rules and summary["test_accuracy"] > 0.5


def test_a_file_without_rules_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(train.UsageError, match=f"--rules: .*{said}"):
            train.run(train.Config(rules=path), Console(quiet=True))
    with pytest.raises(train.UsageError, match=r"--out .* does not exist"):
        tune_models.main(tune_models.Options(out=tmp_path / "no" / "folder"), Console(quiet=True))
