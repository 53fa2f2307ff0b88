"""Published config.json files: sizes, rotary positions and windows as transformers reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch_models
from family_cases import GOLDEN

from ssjax.config import StreamsConfig
from ssjax.models.attention import rotary_frequencies
from ssjax.models.parameters import count
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.weights import config_json, families, huggingface, published
from ssjax.weights.text_part import text_values

COUNTS = json.loads((GOLDEN / "parameter_counts.json").read_text())


def config_of(name, values):
    of_text = text_values(values, name)
    family = families.find_family(of_text, name)
    return huggingface.Source(name, Path(name), "", of_text, family, {}).model_config("float32")


@pytest.fixture(scope="module", params=sorted(COUNTS))
def model(request):
    """(hub id, content of config.json, our config of it)."""
    values = published.find(request.param)
    return request.param, values, config_of(request.param, values)


def test_all_are_counted():
    assert set(published.names()) == set(COUNTS)


@pytest.mark.parametrize("name", ["facebook", "facebook/opt", "../published/facebook/opt-125m", ""])
def test_what_is_no_id_of_ours_is_not_found(name):
    assert published.find(name) is None


def test_whole_files_say_the_same(shared):
    """What was left out of the packaged ones is nothing that we compute with."""
    whole = {path.name: path for path in shared("hf_configs").iterdir()}
    for name in published.names():
        if (directory := whole.pop(name.split("/")[1], None)) is not None:
            values = config_json.read_config_json(directory)
            assert config_of(name, values) == config_of(name, published.find(name))
    assert not whole


def test_number_of_parameters(model):
    name, _, config = model
    streams = StreamsConfig(num_streams=0, num_stream_layers=2)
    assert count(abstract_params(Transformer(config, streams, scan=True))) == COUNTS[name]


def test_transformers_counts_the_same(model, transformers):
    name, values, _ = model
    assert torch_models.count_parameters(values) == COUNTS[name]


def test_positions_and_windows_are_those_of_transformers(model, transformers):
    _, values, config = model
    hf_config = torch_models.hf_config(values)
    window = getattr(hf_config, "sliding_window", None)
    if window and 0 < config.longest_sequence <= window:
        window = None  # no sequence outgrows it
    types = getattr(hf_config, "layer_types", None) or ["sliding_attention"] * config.num_layers
    local = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    assert config.local_layers == tuple(local if window else ())
    assert config.window == (window if config.local_layers else 0)

    rotated = getattr(hf_config, "no_rope_layers", [1] * config.num_layers)
    assert config.no_rope_layers == tuple(i for i, turned in enumerate(rotated) if not turned)
    assert config.max_positions == hf_config.max_position_embeddings
    frequencies = torch_models.rotary_frequencies(hf_config)
    assert bool(frequencies) == (config.positions == "rotary")
    for kind, expected in frequencies.items():
        ours = rotary_frequencies(config, local=kind.startswith("sliding"))
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "positions"),
    [("llama", 128), ("llama3", 128), ("gemma3", 128), ("phi", 128), ("llama_linear", 3 * 128)],
)
def test_positions_that_a_model_was_made_for(name, positions):
    """Old linear scaling has the number before scaling, newer files the one after."""
    values = tiny_models.find(name).config_json
    family = families.find_family(values, name)
    assert family.model_fields(values)["max_positions"] == positions
    del (values := dict(values))["max_position_embeddings"]
    assert family.model_fields(values)["max_positions"] == 0
