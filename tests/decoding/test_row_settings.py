"""Settings by row against NumPy, and against the program of one setting for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.row_settings import draw_by_row, settings_of, warp_by_row
from ssjax.decoding.sampling import Sampling, draw, position_noise

VOCAB = 40
ROWS = (
    Sampling(),
    Sampling(0.7),
    Sampling(1.0, top_k=3),
    Sampling(1.3, top_p=0.6),
    Sampling(0.9, min_p=0.2),
    Sampling(2.0, top_k=9, top_p=0.8, min_p=0.05),
    Sampling(0.5, top_k=VOCAB + 5, top_p=1e-6),
)


def by_row(samplings):
    rows = [settings_of(sampling, (1, 2), 3, drafting=True) for sampling in samplings]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


def sorted_warp(logits, sampling):
    """Probabilities of one row, float64, by sorting."""
    logits = np.asarray(logits, np.float64) / sampling.temperature
    if 0 < sampling.top_k < VOCAB:
        logits = np.where(logits < np.sort(logits)[-sampling.top_k], -np.inf, logits)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p[p < p[order][before < sampling.top_p].min()] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


def test_every_row_is_cut_as_it_asks():
    logits = np.random.default_rng(0).normal(size=(len(ROWS), 4, VOCAB)).astype(np.float32) * 3
    logits[:, 0, :6] = logits.max()  # equals at the top
    warped = np.asarray(jax.nn.softmax(jax.jit(warp_by_row)(logits, by_row(ROWS))))
    for row, sampling in enumerate(ROWS[1:], start=1):
        for node in range(4):
            expected = sorted_warp(logits[row, node], sampling)
            np.testing.assert_array_equal(warped[row, node] > 0, expected > 0)
            np.testing.assert_allclose(warped[row, node], expected, atol=1e-6)


def test_no_vocabulary_is_sorted():
    """A sort of the vocabulary is what costs on an accelerator."""
    logits = jnp.zeros((len(ROWS), 4, VOCAB))
    assert "stablehlo.sort" not in jax.jit(warp_by_row).lower(logits, by_row(ROWS)).as_text()


def test_draws_are_those_of_one_setting_for_all():
    """Greedy rows among sampled ones, and alone; nothing from logits that are not finite."""
    rng = np.random.default_rng(1)
    size = (len(ROWS), 3, VOCAB)
    depth = np.broadcast_to(np.array([0, 1, 1]), size[:2])
    noise = position_noise(jax.random.split(jax.random.key(0), len(ROWS)), depth[:, :2], VOCAB)
    together = jax.jit(lambda x, s: draw_by_row(x, x, depth, lambda: noise, s))
    for _ in range(20):
        logits = rng.normal(size=size).astype(np.float32) * 2
        logits[rng.integers(size[0]), rng.integers(3), 5] = np.nan
        drawn = np.asarray(together(logits, by_row(ROWS)))
        for row, sampling in enumerate(ROWS):
            own = None if sampling.temperature == 0 else noise[row : row + 1]
            one = jnp.asarray(logits[row : row + 1])
            alone = draw(one, one, depth[row : row + 1], own, sampling)
            np.testing.assert_array_equal(drawn[row], alone[0])
        greedy = np.asarray(together(logits, by_row([Sampling()] * len(ROWS))))
        finite = np.isfinite(logits).all(axis=-1)
        np.testing.assert_array_equal(greedy, np.where(finite, logits.argmax(axis=-1), -1))


def test_unused_end_ids_are_never_drawn():
    settings = settings_of(Sampling(), (7,), 4, drafting=True)
    assert settings.eos_ids.tolist() == [[7, -2, -2, -2]]
    shapes = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    assert all(len(value) == 1 for value in shapes.values())
