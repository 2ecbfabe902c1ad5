"""Frameworks under the promotion that they are written for; Keras on JAX, which it asks for when it is imported."""

import os

import jax
import pytest

os.environ["KERAS_BACKEND"] = "jax"


@pytest.fixture(autouse=True)
def _promotion_of_the_frameworks():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
