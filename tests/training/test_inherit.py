"""A new run with the weights of another."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tokenizers import TEXTS

from ssjax import config as config_lib
from ssjax.config import MeshConfig, StreamsConfig
from ssjax.data import choice
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.errors import UserError
from ssjax.models.parameters import flatten
from ssjax.models.transformer import abstract_params, init_params
from ssjax.parallel.partitioning import make_mesh
from ssjax.training.inherit import inherited
from ssjax.training.step import TrainState
from ssjax.weights import load
from ssjax.weights.checkpoint import Checkpoints

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
TOKENIZER = train_tokenizer(TEXTS, 300, symbols=())


def config_of(**changes):
    c = config_lib.default_config()
    config_lib.shrink(c)
    config = dataclasses.replace(
        config_lib.from_config_dict(c), streams=StreamsConfig(num_streams=0, num_stream_layers=2)
    )
    return dataclasses.replace(config, **changes)


def new_params(config, seed):
    return jax.jit(lambda: init_params(load.make_model(config, TOKENIZER), seed))()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run without streams at step 3, and what it trained."""
    directory, config = tmp_path_factory.mktemp("before"), config_of()
    params = new_params(config, 5)
    (directory / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
    TOKENIZER.save(directory)
    about = {"data": {}, "tokenizer": {}}
    with Checkpoints(
        directory / "checkpoints",
        keep_latest=1,
        keep_every=0,
        keep_best=0,
        best_by="validation_loss",
        about=about,
    ) as checkpoints:
        checkpoints.save(
            TrainState(jnp.int32(3), params, {}),
            data={"seed": 0, "next_batch": 3},
            config=config_lib.to_dict(config),
            tokenizer=TOKENIZER.files,
            measured=None,
        )
        checkpoints.wait()
    return directory, flatten(params)


def begun(config, directory, new=None, tokenizer=TOKENIZER):
    """Leaves by name with the other run's in their places; new: shapes alone, if None."""
    config = dataclasses.replace(config, init_from=str(directory))
    model = load.make_model(config, TOKENIZER)
    new = abstract_params(model) if new is None else new
    return flatten(inherited(config, model, tokenizer, new, MESH))


def test_what_was_trained_is_taken_and_streams_begin_anew(before, capsys):
    directory, trained = before
    streams = StreamsConfig(num_streams=2, num_stream_layers=2)
    config = config_of(streams=streams)
    new = new_params(config, 0)
    taken, new = begun(config, directory, new), flatten(new)
    assert taken.keys() == new.keys() > trained.keys()
    for name, leaf in taken.items():
        np.testing.assert_array_equal(leaf, trained.get(name, new[name]))
        assert name not in trained or leaf.dtype == trained[name].dtype
    said = capsys.readouterr().err
    assert f"step 3: {len(trained)} of {len(new)} trained leaves" in said


def test_the_tokenizer_is_taken_along(before, tmp_path):
    config = config_of(init_from=str(before[0]))
    chosen = choice.choose_tokenizer(tmp_path, config, None, print)
    assert chosen.files == TOKENIZER.files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.rope_theta": 5e5}, "its model.rope_theta is 10000.0, not 500000.0; give that"),
        ({"model.embed_dim": 64}, "its model.embed_dim is 32, not 64"),
        (
            {"streams.num_stream_layers": 1},
            "its stream_layers.* the shape .*; give the same streams",
        ),
    ],
)
def test_other_weights_are_refused(before, changes, message):
    config = config_of()
    for key, value in changes.items():
        group, name = key.split(".")
        changed = dataclasses.replace(getattr(config, group), **{name: value})
        config = dataclasses.replace(config, **{group: changed})
    with pytest.raises(UserError, match=f"^init_from {before[0]}: {message}"):
        begun(config, before[0])


def test_another_tokenizer_and_no_run_are_refused(before, tmp_path):
    other = train_tokenizer(TEXTS, 301, symbols=())
    with pytest.raises(UserError, match="its tokenizer is another one; give data.tokenizer="):
        begun(config_of(), before[0], tokenizer=other)
    with pytest.raises(UserError, match="config.json: .*give the workdir of a run"):
        begun(config_of(), tmp_path)
    values = config_lib.to_dict(config_of(workdir=str(tmp_path), init_from=str(tmp_path)))
    with pytest.raises(UserError, match="is the workdir itself"):
        config_lib.from_dict(values)
