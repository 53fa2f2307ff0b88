"""These tests run what users run: XLA with all its optimisations."""

import jax
import pytest


# Not of the package: pytest would end that with the session, and all later files compile longer.
@pytest.fixture(scope="module", autouse=True)
def full_optimisation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
