"""Decoders of models that draft badly, well, and with streams that the main stream reads."""

import oracles
import pytest

EOS = (11, 12)


@pytest.fixture(scope="session")
def reading():
    """A model whose main stream reads its streams."""
    model = oracles.make_model(main_reads_streams=True)
    return model, oracles.random_params(model, seed=11)


@pytest.fixture(scope="session")
def decoders(tiny, counting, reading):
    """Drafts mostly fail, mostly hold, and the form in which streams run in every pass."""
    models = {"random": tiny, "trained": counting[:2], "reading": reading}
    return {name: oracles.make_decoder(*m, eos_ids=EOS) for name, m in models.items()}
