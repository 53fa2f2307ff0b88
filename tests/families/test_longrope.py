"""Where the long factors of Phi-3 begin: up to there as transformers, from there on refused."""

import dataclasses

import family_cases
import numpy as np
import oracles
import pytest
import tiny_models
import torch_models

from ssjax import config as config_lib
from ssjax.config import Config
from ssjax.decoding.room import check_positions
from ssjax.errors import UserError
from ssjax.training import trainer

TINY = tiny_models.find("phi3_long")
LONGEST = tiny_models.MAX_LENGTH


@pytest.fixture(scope="module")
def config():
    return family_cases.golden_case(TINY).config


def test_what_the_file_of_a_stretched_model_means(config):
    assert (config.longest_sequence, config.max_positions) == (LONGEST, 8 * LONGEST)
    assert config.local_layers == ()  # the window is wider
    assert config.rope_attention_factor == pytest.approx(np.sqrt(1 + np.log(8) / np.log(LONGEST)))
    config_lib.validate_model(config)
    for changes in ({"rope_factors": (1.0,) * 5}, {"rope_original_positions": 0}):
        with pytest.raises(UserError, match="for 6 pairs of channels"):
            config_lib.validate_model(dataclasses.replace(config, **changes))


def test_longer_outputs_are_refused(config, capsys):
    check_positions(config, LONGEST)
    with pytest.raises(UserError, match="may have 101 tokens, but the model has positions for 100"):
        check_positions(config, LONGEST + 1)
    assert not capsys.readouterr().err


def test_longer_training_examples_are_refused(config, tmp_path):
    """Before the first step; those of the sample have up to 208 tokens."""
    model = dataclasses.replace(config, vocab_size=0)
    with pytest.raises(UserError, match="is 208, but the model has positions for 100"):
        trainer.train(dataclasses.replace(Config(), model=model, workdir=str(tmp_path / "run")))


def test_one_token_more_means_other_factors(tmp_path, transformers):
    """What is refused would have been wrong: at the same places transformers has other logits."""
    case = family_cases.live_case(TINY, tmp_path)
    (row,) = tiny_models.random_ids(TINY, 0, (LONGEST + 1,))
    hidden = oracles.run_model(case.model, case.params, [row]).hidden
    ours = oracles.logits_of(case.model, case.params, hidden)[0]
    short = torch_models.run(case.torch_model, row[:LONGEST])
    np.testing.assert_allclose(ours[:LONGEST], short, atol=oracles.LOGIT_TOLERANCE, rtol=0)
    assert np.abs(torch_models.run(case.torch_model, row)[:LONGEST] - short).max() > 1
