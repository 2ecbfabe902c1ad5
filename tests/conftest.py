"""Strict JAX: four host devices, x64 available, no silent promotion; hypothesis repeats itself.

Thousands of small programs run once, so the time goes into compiling them: the code generator is told not to optimise.
What is computed, the HLO, is optimised as ever.
"""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of small programs a module: keep memory flat."""
    yield
    jax.clear_caches()
