"""Which weights wrote the data of a run, and what is said of others."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import oracles
import pytest

from ssjax.config import AdaptationConfig, Config, DataConfig, ModelConfig
from ssjax.models.lora import split_trainable
from ssjax.models.parameters import cast, flatten, merge, resplit_layers, unflatten
from ssjax.training.provenance import line_of_data
from ssjax.weights.identity import identity


@pytest.fixture(scope="module")
def base():
    """Weights of a model without streams, in values that bfloat16 has."""
    model = oracles.make_model(num_streams=0, num_stream_layers=1)
    return cast(oracles.random_params(model, seed=0), jnp.bfloat16)


def test_however_weights_are_held_they_are_the_same(base):
    known = identity(base)
    for num_stream_layers in (1, 2, 3):
        other = resplit_layers(base, num_stream_layers)
        assert identity(other) == identity(cast(other, jnp.float32)) == known
    lossless = AdaptationConfig(mode="lossless", rank=2)
    adapted = oracles.random_params(oracles.make_model(adaptation=lossless), seed=1)
    new, _ = split_trainable(adapted, lossless)
    assert new and identity(merge(new, resplit_layers(base, 2))) == known


def test_other_weights_are_others(base):
    """One bit of any leaf; two layers, or two rows of a table, in the place of each other."""
    known, leaves = identity(base), flatten(base)
    for name, leaf in leaves.items():
        for changed in (
            leaf.at[(0,) * leaf.ndim].multiply(-1),
            leaf.at[(-1,) * leaf.ndim].add(jnp.bfloat16(0.5)),
            jnp.flip(leaf, 0) if leaf.shape[0] > 1 else -leaf,
        ):
            assert identity(unflatten(leaves | {name: changed})) != known, name


def config_of(path, mode="lossless"):
    return Config(
        model=ModelConfig(pretrained="BASE"),
        adaptation=AdaptationConfig(mode=mode),
        data=DataConfig(path=str(path)),
    )


def test_a_frozen_base_that_learns_other_text_is_told(base, tmp_path):
    text_of_people = line_of_data(config_of(tmp_path), base)
    assert text_of_people.startswith(f"{tmp_path} was not written by BASE, which stays as it is")
    assert "3.07 against 1.12 tokens per call" in text_of_people
    assert "python -m ssjax.distill --workdir BASE --config FILE --target DIR" in text_of_people
    assert line_of_data(config_of(""), base).startswith("the generated sample was not written")
    assert line_of_data(config_of(tmp_path, "shared"), base) == ""

    asked = {"task": "pairs", "max_prompt_length": 8, "max_target_length": 6}
    asked["weights"] = identity(base)
    about = {"finished": True, "base": "runs/first", "asked": asked}
    (tmp_path / "distilled.json").write_text(json.dumps(about))
    assert line_of_data(config_of(tmp_path), resplit_layers(base, 3)) == ""
    other = jax.tree.map(lambda leaf: -leaf, base)
    told = line_of_data(config_of(tmp_path), other)
    assert told.startswith(f"{tmp_path} was distilled from runs/first, whose weights are not those")
    assert "\n" not in text_of_people + told
    full = dataclasses.replace(config_of(tmp_path), adaptation=AdaptationConfig())
    assert line_of_data(full, {}) == ""
