"""Tiny models of every family as the product reads them, beside what transformers computes.

Two cases a family: `golden` has committed weights and results and needs no torch; `live` makes
both on the spot, with other weights. They compile the same programs, so the second costs little.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tiny_models
import torch_models
from tiny_models import ROW_LENGTHS, TinyModel

from ssjax.config import ModelConfig, StreamsConfig
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer
from ssjax.weights import huggingface

GOLDEN = Path(__file__).parent / "golden" / "families"
NUM_STREAMS = 3


@dataclasses.dataclass
class Case:
    """An opened model and what transformers computes with it.

    Attributes:
      tiny: its description.
      source: as opened.
      rows, prompts: token ids.
      make_logits: [T, V] of each row, by transformers.
      make_greedy: greedy ids after each prompt, by transformers.
      torch_model: of transformers; None for a golden.
    """

    tiny: TinyModel
    source: huggingface.Source
    rows: list[list[int]]
    prompts: list[list[int]]
    make_logits: Callable[[], list[np.ndarray]]
    make_greedy: Callable[[], list[list[int]]]
    torch_model: object = None

    @functools.cached_property
    def logits(self) -> list[np.ndarray]:
        return self.make_logits()

    @functools.cached_property
    def greedy(self) -> list[list[int]]:
        return self.make_greedy()

    @functools.cached_property
    def config(self) -> ModelConfig:
        """Without the path, so that equal models compile once."""
        return dataclasses.replace(self.source.model_config("float32"), pretrained="")

    @functools.cached_property
    def base_params(self) -> Params:
        """As read, without streams."""
        return huggingface.read_params(self.source, self.config, self.tiny.num_stream_layers)

    @functools.cached_property
    def params(self) -> Params:
        """With a random stream embedding."""
        shape = (NUM_STREAMS, self.config.embed_dim)
        noise = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
        return self.base_params | {"stream_embedding": jnp.asarray(noise)}

    @functools.cached_property
    def model(self) -> Transformer:
        streams = StreamsConfig(
            NUM_STREAMS, self.tiny.num_stream_layers, parent_rank=0, root_rank=0
        )
        return Transformer(self.config, streams, scan=True)


def golden_case(tiny: TinyModel) -> Case:
    """From the files that `update_family_goldens.py` has written."""
    directory = GOLDEN / tiny.name
    values = json.loads((directory / "expected.json").read_text())
    borders = np.cumsum(ROW_LENGTHS)[:-1]
    return Case(
        tiny,
        huggingface.open_source(directory),
        values["rows"],
        values["prompts"],
        lambda: np.split(np.load(directory / "logits.npy"), borders),
        lambda: values["greedy"],
    )


def live_case(tiny: TinyModel, directory: Path) -> Case:
    """From a model that transformers makes now and saves in the directory."""
    seed = tiny.seeds[1]
    model = torch_models.build(tiny, seed)
    torch_models.save(model, directory)
    rows, prompts = (
        tiny_models.random_ids(tiny, seed, lengths)
        for lengths in (ROW_LENGTHS, tiny_models.PROMPT_LENGTHS)
    )
    return Case(
        tiny,
        huggingface.open_source(directory),
        rows,
        prompts,
        lambda: [torch_models.run(model, row) for row in rows],
        lambda: [torch_models.continue_greedily(model, prompt)[0] for prompt in prompts],
        model,
    )


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a model directory, float32."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(path)
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
