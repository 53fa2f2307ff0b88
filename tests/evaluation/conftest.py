"""Decoders of models that draft badly, well, with streams that the main stream reads or that know
their parents."""

import oracles
import pytest

EOS = (11, 12)


@pytest.fixture(scope="session")
def reading():
    """A model whose main stream reads its streams."""
    model = oracles.make_model(main_reads_streams=True)
    return model, oracles.random_params(model, seed=11)


@pytest.fixture(scope="session")
def told():
    """A model whose streams are corrected by their parents."""
    return oracles.train_to_count(steps=60, parent_rank=4)[:2]


@pytest.fixture(scope="session")
def decoders(tiny, counting, reading, told):
    """Drafts mostly fail, mostly hold, run in every pass, and know their parents."""
    models = {"random": tiny, "trained": counting[:2], "reading": reading, "told": told}
    return {name: oracles.make_decoder(*m, eos_ids=EOS) for name, m in models.items()}
