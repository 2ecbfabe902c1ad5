"""`python -m jaxconv`: what it prints, and that its exit status says right (0), wrong (1) or unknown (2)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import jaxconv
from jaxconv.__main__ import main

OPS = """
import jax, jax.numpy as jnp

def cube(x): return x ** 3
cube_args = (jnp.arange(1.0, 4.0),)

@jax.custom_vjp
def wrong(x): return x ** 3
wrong.defvjp(lambda x: (x ** 3, x), lambda x, g: (-3 * x * x * g,))
def wrong_args(): return jnp.arange(1.0, 4.0),

def leaky(x): return jnp.where(x > 0, x, 0.1 * x)
def leaky_reference(x): return jnp.maximum(x, 0.2 * x)
example_args = [jnp.array([-1.0, 2.0])]

def precise(x): return jnp.sin(x)
def precise_args():
    assert jnp.arange(3.0).dtype == jnp.float64
    return (jnp.arange(3.0),)

def single(x): return x
single_args = jnp.ones(3)

def hasty(x): return x
def hasty_args(): return {}["x"]

def smooth(x, w): return jnp.correlate(x, w, "valid")
smooth_args = (jnp.array([0.5, 2.0, -1.0]), jnp.array([1.0, 3.0]))

@jax.custom_vjp
def rough(x, w): return smooth(x, w)
def rough_backward(saved, g):
    dx, dw = jax.vjp(smooth, *saved)[1](g)
    return dx[::-1], dw
rough.defvjp(lambda x, w: (smooth(x, w), (x, w)), rough_backward)
rough_args = smooth_args

mode = jax.jit(lambda x, how: x)
mode_args = (jnp.ones(3), "same")
"""


@pytest.fixture(autouse=True)
def _as_users_are():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def ops(tmp_path: Path) -> str:
    path = tmp_path / "ops.py"
    path.write_text(OPS)
    return str(path)


def test_check_says_right_and_wrong(ops: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", f"{ops}:cube"]) == 0
    assert "check(cube): the gradient is right." in capsys.readouterr().out
    assert main(["check", f"{ops}:wrong", "--skip", "vmap", "jit", "--json", str(tmp_path / "report.json")]) == 1
    assert "The sign is wrong." in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is False


def test_check_uses_the_files_reference_and_arguments(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{ops}:leaky", "--skip", "vmap", "jit"]) == 1
    assert "x float32[2]" in capsys.readouterr().out


def test_check_in_float64_to_second_order(ops: str) -> None:
    with jax.enable_x64(True):
        assert main(["check", f"{ops}:precise", "--x64", "--order", "2", "--seed", "3"]) == 0


def test_compare_races_one_or_several(ops: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png, report = tmp_path / "race.png", tmp_path / "race.json"
    assert main(["compare", f"{ops}:cube", "--seconds", "0.05", "--png", str(png), "--json", str(report)]) == 0
    assert "automatic" in capsys.readouterr().out and png.read_bytes().startswith(b"\x89PNG")
    assert [c["name"] for c in json.loads(report.read_text())["contestants"]] == ["cube", "automatic"]
    assert main(["compare", f"{ops}:cube", f"{ops}:wrong", "--seconds", "0.05"]) == 1


UNKNOWN = {
    "cube": "the function must be given as path.py:function, but is 'cube'",
    "missing.py:cube": "missing.py is not a file",
    "OPS:nothing": "defines no function 'nothing'; it defines cube",
    "OPS:single": r"single_args must be a tuple, but is ArrayImpl. For one argument write (x,)",
    "OPS:hasty": "the arguments for hasty fail: KeyError: 'x'",
    "OPS:mode": "check: f takes nothing but arrays, as jax.jit makes it, and not how (str).",
}


@pytest.mark.parametrize("target", UNKNOWN)
def test_what_cannot_run_is_status_2(target: str, ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", target.replace("OPS", ops)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxconv: ") and UNKNOWN[target] in error and len(error.splitlines()) == 1


def test_what_cannot_be_written_is_refused_before_any_work(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{ops}:cube", "--json", str(Path(ops).parent)]) == 2
    assert main(["compare", f"{ops}:cube", "--png", f"{ops}/race.png"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and "it is a folder" in error and "its folder is not a folder" in error


def test_a_file_that_fails_or_says_no_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "quits.py").write_text("raise SystemExit(0)")
    (tmp_path / "bare.py").write_text("def f(x): return x")
    (tmp_path / "notes.txt").write_text("f")
    for name, message in {
        "broken.py": "broken.py fails: ZeroDivisionError: division by zero",
        "quits.py": "quits.py fails: SystemExit: 0",
        "bare.py": "bare.py must define f_args or example_args",
        "notes.txt": "notes.txt is not a Python file",
    }.items():
        assert main(["check", f"{tmp_path / name}:f"]) == 2
        assert message in capsys.readouterr().err


def test_explain_prints_draws_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = {name: tmp_path / f"recipe.{name}" for name in ("json", "svg", "html")}
    shapes = ["1,6,5,2", "3,2,1,4", "--stride", "2,1", "--padding=-1:1,0:2", "--groups", "2", "--dilation", "1"]
    written = ["--json", files["json"], "--figure", files["svg"], "--html", files["html"]]
    assert main(["explain", *shapes, *map(str, written)]) == 0
    expected = jaxconv.explain((1, 6, 5, 2), (3, 2, 1, 4), stride=(2, 1), padding=((-1, 1), (0, 2)), groups=2)
    assert capsys.readouterr().out == f"{expected}\n"
    assert json.loads(files["json"].read_text()) == expected.to_dict()
    assert files["svg"].stat().st_size > 0 and files["html"].read_text().startswith("<!doctype html>")


def test_explain_says_one_entry_in_text_or_latex(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "1,4,1", "2,1,1", "--padding", "VALID", "--entry", "dx[0,1,0]"]) == 0
    assert capsys.readouterr().out == "dx[0,1,0] = δ[0,0,0]·w[1,0,0] + δ[0,1,0]·w[0,0,0]\n"
    assert main(["explain", "--rules", "textbook", "--latex"]) == 0
    assert capsys.readouterr().out.startswith(r"\begin{align*}")


def test_explain_a_function_of_a_file(ops: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["explain", f"{ops}:smooth", "--figure", str(tmp_path / "smooth.svg")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("smooth(x, w) is conv(x, w, padding=((0, 0),)); x (3,) is read as (1, 3, 1), ")
    assert (tmp_path / "smooth.svg").stat().st_size > 0
    assert main(["explain", f"{ops}:rough", "--entry", "dx[0,0,0]"]) == 1
    out, error = capsys.readouterr()
    assert out.startswith("WRONG dx[0,0,0] = ") and "\nright dx[0,0,0] = δ[0,0,0]·w[0,0,0]" in out
    assert error.startswith("WRONG: dx[0, 0, 0]: the recipe gives ")
    assert main(["explain", f"{ops}:cube"]) == 2
    assert "takes x and w, but" in capsys.readouterr().err
    assert main(["explain", f"{ops}:smooth", "2,1,1"]) == 2
    assert "takes no shape of w" in capsys.readouterr().err
    assert main(["explain", f"{ops}:smooth", "--stride", "2"]) == 2
    assert "explain: stride must be left out for a function" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1,5,5,2", "2,2,1,1"], "explain: w.shape[2] * groups must equal x.shape[-1], but 1 * 1 != 2"),
        (["1,5,5,1", "2,2,1,1", "--stride", "0"], "explain: stride must be at least 1, but 0 < 1."),
        (["--entry", "dx[0,9,0,0]"], "explain: the entry must have one index per axis of dx"),
        (["1,4,4,4,1", "2,2,2,1,1", "--html", "page.html"], "explain: the page draws at most 2 spatial axes"),
        (["--figure", "recipe.bmp"], "explain: a figure's path must end in one of .svg, .png, .pdf, .gif"),
        (["--json", "no/such/folder.json"], "its folder is not a folder"),
    ],
)
def test_what_cannot_be_explained_is_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *words]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("jaxconv: ") and message in error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["1,x"], ["1,5,5,1", "2,2,1,1", "--padding", "1:x"], ["--entry", "dx[]"]])
def test_numbers_that_are_none_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["explain", *words])
    assert exit_.value.code == 2 and "must be written like" in capsys.readouterr().err


@pytest.mark.thorough
def test_doctor_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-m", "jaxconv", "doctor"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"jax {jax.__version__}" in done.stdout and "devices: cpu:0" in done.stdout
    assert done.stdout.count(": right") == 6 and "all gradients are right" in done.stdout
    said = [line for line in done.stderr.splitlines() if "still" not in line]
    assert said[:2] == ["jaxconv: looking for devices", "jaxconv: this takes about a minute; --quick takes seconds"]
    assert len(said) == 8 and said[2] == "jaxconv: checking 1 of 6: float32, rules='textbook'"


def test_doctor_speaks_before_it_works_and_has_a_quick_form() -> None:
    """Through a pipe, where output is kept back unless it is flushed; in seconds of this process, not of the clock."""
    done = subprocess.run(
        [sys.executable, "-c", QUICK], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, lines
    start = lines.index("jaxconv: looking for devices")
    assert lines[0].startswith("python 3.") and lines[start + 1].startswith("devices: ")
    checks = [line for line in lines[start:] if "right" in line or ("checking" in line and "still" not in line)]
    names = ["convolution, rules='textbook'", "convolution, rules='rotated'", "convolution, rules='fast'"]
    names += ["activation, pools and padding, rules='fast'"]
    for i, name in enumerate(names):
        assert checks[2 * i : 2 * i + 2] == [f"jaxconv: checking {i + 1} of 4: {name}", f"  {name}: right"]
    assert checks[8:] == ["all gradients are right"] and float(lines[-1]) < 10


QUICK = """
import sys, time
from jaxconv.__main__ import main
status = main(["doctor", "--quick"])
print(time.process_time())
sys.exit(status)
"""


def test_doctor_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = jaxconv.rules.RULE_SETS["rotated"]
    wrong = jaxconv.ConvRules(right.input_grad, lambda x, g, geometry: 1.01 * right.kernel_grad(x, g, geometry))
    monkeypatch.setitem(jaxconv.rules.RULE_SETS, "rotated", wrong)
    assert main(["doctor", "--quick"]) == 1
    out = capsys.readouterr().out
    assert "convolution, rules='rotated': WRONG" in out and out.count(": right") == 3
    assert "1 gradients are WRONG: please report this output" in out


def test_long_work_is_not_silent(ops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Report:
        ok, verdict = True, "right"

    def slowly(*args: object, **options: object) -> Report:
        time.sleep(0.35)
        return Report()

    monkeypatch.setattr("jaxconv.commands.speaking.SILENCE", 0.1)
    for command in ("check", "compare"):
        monkeypatch.setattr(jaxconv, command, slowly)
        assert main([command, f"{ops}:cube"]) == 0
    said = capsys.readouterr().err.splitlines()
    for work in (f"checking {ops}:cube", f"comparing {ops}:cube"):
        lines = [line for line in said if line.startswith(f"jaxconv: still {work}, ")]
        assert lines and lines[0].endswith(", 0 s")


def test_ctrl_c_is_a_sentence(ops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jaxconv, "check", interrupted)
    assert main(["check", f"{ops}:cube"]) == 130
    assert capsys.readouterr().err == "jaxconv: interrupted\n"


def test_usage_is_status_2() -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["judge"])
    assert exit_.value.code == 2
