"""Strict JAX: four host devices, x64 available, no silent promotion; hypothesis repeats itself.

Thousands of small programs run once, so the time goes into compiling them: the code generator is told not to optimise,
and jaxlib 0.10 to fuse in its older way, which compiles twice as fast. What is said of compiled programs is tested in
processes that are told neither. Where JAX finds an accelerator the first is left out: jaxlib 0.11.2 gets a float64 sum
wrong on a GPU when it does not optimise.
"""

import importlib.metadata
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        *(
            ["--xla_backend_optimization_level=0"]
            if os.environ.get("JAX_PLATFORMS") == "cpu" or not importlib.metadata.entry_points(group="jax_plugins")
            else []
        ),
        *(["--xla_cpu_use_fusion_emitters=false"] * importlib.metadata.version("jaxlib").startswith("0.10.")),
    ]
)

import hypothesis
import jax
import pytest

from jaxconv.engines.onednn import loading

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser):
    parser.addoption("--native", metavar="PATH", help="another build of the native engine, as one with sanitizers")


def pytest_configure(config):
    if path := config.getoption("native"):
        loading.LIBRARY = Path(path)
        if why := loading.why_off():  # its tests would be skipped
            raise pytest.UsageError(f"--native {path}: {why}")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of small programs a module: keep memory flat."""
    yield
    jax.clear_caches()


@pytest.fixture
def as_a_user():
    """JAX's defaults, with which scripts run and instruments are used, instead of the strict settings of the tests."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
