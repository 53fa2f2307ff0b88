"""Both ways of multiplying a few rows give the NumPy product, in every shape and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.models.execution import Execution
from ssjax.models.projection import project, project_each

COLUMNS = Execution(few_rows_as_columns=True)
PADDED = Execution("tpu", few_rows_padded=True)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 3), (1, 9), (4, 16), (5, 13)])
@pytest.mark.parametrize("execution", [Execution(), COLUMNS, PADDED])
def test_equals_numpy(shape, execution):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(*shape, 24)), rng.normal(size=(7, 24))
    y = jax.jit(lambda x, w: project(x, w, jnp.float32, execution))(x, weight)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, x @ weight.T, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (9, 3), (2, 5, 3)])
@pytest.mark.parametrize("execution", [Execution(), PADDED])
def test_each_by_its_own_equals_numpy(shape, execution):
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(*shape, 24)), rng.normal(size=(3, 7, 24))
    y = project_each(jnp.asarray(x), jnp.asarray(weight), jnp.float32, execution)
    assert y.shape == (*shape, 7)
    for one in range(3):
        np.testing.assert_allclose(y[..., one, :], x[..., one, :] @ weight[one].T, atol=1e-5)


@pytest.mark.parametrize("execution", [Execution(), COLUMNS, PADDED])
def test_dtypes(execution):
    """The product is computed in one dtype and returned in that or in another."""
    x, weight = jnp.full((1, 3, 8), 1 + 2**-9), jnp.ones((5, 8))
    narrow = project(x, weight, jnp.bfloat16, execution)
    wide = project(x, weight, jnp.bfloat16, execution, result=jnp.float32)
    assert (narrow.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(wide, 8.0)  # 1 + 2**-9 is 1 in bfloat16
    np.testing.assert_allclose(project(x, weight, jnp.float32, execution), 8 + 2**-6, rtol=1e-6)


def test_few_rows_read_the_weight_as_it_lies():
    """The compiled product has the weight on the left, and no weight is transposed or copied."""
    rows, weight = jnp.ones((1, 6, 32)), jnp.ones((96, 32))
    run = jax.jit(lambda x, w: project(x, w, jnp.float32, COLUMNS))
    text = run.lower(rows, weight).compile().as_text()
    assert "f32[96,8]" in text  # 6 rows padded to 8, as columns
    many = jnp.ones((1, 65, 32))
    text = run.lower(many, weight).compile().as_text()
    assert "f32[96," not in text.replace("f32[96,32]", "")
