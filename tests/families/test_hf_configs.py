"""Published config.json files: sizes, rotary positions and windows as transformers reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch_models
from family_cases import GOLDEN
from published_sizes import SIZES

from ssjax.config import StreamsConfig
from ssjax.models.attention import rotary_frequencies
from ssjax.models.parameters import count
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.weights import config_json, families, huggingface
from ssjax.weights.text_part import text_values

COUNTS = json.loads((GOLDEN / "parameter_counts.json").read_text())


@pytest.fixture(scope="module", params=sorted(COUNTS))
def published(request, shared):
    """(name, content of config.json, our config of it)."""
    name = request.param
    if name in SIZES:
        values = SIZES[name]
    else:
        values = config_json.read_config_json(shared("hf_configs", name))
    of_text = text_values(values, name)
    family = families.find_family(of_text, name)
    source = huggingface.Source(name, Path(name), "", of_text, family, {})
    return name, values, source.model_config("float32")


def test_all_are_counted(shared):
    whole_files = {path.name for path in shared("hf_configs").iterdir()}
    assert whole_files | set(SIZES) == set(COUNTS)


def test_number_of_parameters(published):
    name, _, config = published
    streams = StreamsConfig(num_streams=0, num_stream_layers=2)
    assert count(abstract_params(Transformer(config, streams, scan=True))) == COUNTS[name]


def test_transformers_counts_the_same(published, transformers):
    name, values, _ = published
    assert torch_models.count_parameters(values) == COUNTS[name]


def test_positions_and_windows_are_those_of_transformers(published, transformers):
    _, values, config = published
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
