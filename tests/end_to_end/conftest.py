"""These tests run what users run: XLA with all its optimisations."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def full_optimisation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
