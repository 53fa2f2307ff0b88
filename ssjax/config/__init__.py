"""Every setting of a run: one default each, validated, frozen and hashable.

The dataclasses of `keys` are the only place where a default stands. `default_config` mirrors them
as an `ml_collections.ConfigDict`, which experiments edit and the command line overrides;
`from_config_dict` turns that back into the frozen form, which is all that the library accepts.
`ml_collections` is imported inside the bridge function because `models` and `decoding` read these
classes and must run without it.
"""

import dataclasses
from typing import Any

from ssjax.config import measured, ranges
from ssjax.config.checks import check_stream_layers, validate, validate_model
from ssjax.config.keys import (
    CheckpointConfig,
    Config,
    DataConfig,
    DecodeConfig,
    EvalConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from ssjax.config.model_keys import (
    AdaptationConfig,
    DrafterConfig,
    ModelConfig,
    StreamsConfig,
)

__all__ = [
    "AdaptationConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "DrafterConfig",
    "EvalConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "StreamsConfig",
    "TrainConfig",
    "check_stream_layers",
    "default_config",
    "from_config_dict",
    "from_dict",
    "shrink",
    "to_dict",
    "validate_model",
]


def default_config():
    """Returns a locked `ConfigDict` holding every key of `Config` with its default."""
    from ml_collections import ConfigDict

    config = ConfigDict(dataclasses.asdict(Config()))
    config.lock()
    return config


def from_config_dict(config) -> Config:
    """Returns the validated frozen form of a `ConfigDict` made by `default_config`.

    Raises:
      UserError: a value that cannot work, named by its dotted key.
    """
    return from_dict(config.to_dict())


def from_dict(values: dict[str, Any]) -> Config:
    """Returns a validated `Config` from nested plain values, such as a saved config.json.

    Raises:
      UserError: an unknown key, a wrong type, or a value that cannot work.
    """
    config = ranges.build(Config, values)
    if config.drafter.kind == "medusa":
        heads = dataclasses.replace(
            config.streams,
            num_streams=0,
            main_reads_streams=False,
            init_rank=0,
            root_rank=0,
            draft_vocab_size=0,
            draft_tokens=(),
            parent_rank=config.drafter.parent_rank,
            exit_rank=0,
            medusa_heads=config.drafter.num_heads,
        )
        config = dataclasses.replace(config, streams=heads)
    validate(config)
    return config


# Of keys that are younger than some config.json, what was done before there were any, where the
# default is something else.
_BEFORE = {"streams": {"parent_rank": 0, "root_rank": 0}}
# Values that had other names, by key.
_RENAMED = {
    ("checkpoint", "best_by"): {
        "loss": measured.VALIDATION_LOSS,
        "tokens_per_call": measured.TOKENS_PER_CALL,
    }
}


def from_saved(values: dict[str, Any]) -> Config:
    """As `from_dict`, of a config.json, which may be older than a key.

    Raises:
      UserError: as there.
    """
    groups = {name: values.get(name, {}) for name in _BEFORE}
    filled = {
        name: _BEFORE[name] | group for name, group in groups.items() if isinstance(group, dict)
    }
    values = values | filled
    for (name, key), renamed in _RENAMED.items():
        group = values.get(name)
        if isinstance(group, dict) and isinstance(group.get(key), str):
            values[name] = group | {key: renamed.get(group[key], group[key])}
    return from_dict(values)


def shrink(c) -> None:
    """Turns the `ConfigDict` of any experiment into its tiny twin: seconds on one CPU core.

    Every kind of step stays (saving, validation, accumulation of logs); only sizes change.
    """
    c.model.embed_dim, c.model.mlp_dim = 32, 64
    c.model.num_layers, c.streams.num_stream_layers = 3, 2
    c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 4, 2, 8
    c.streams.num_streams = min(c.streams.num_streams, 3)
    c.data.tokenizer_vocab_size, c.data.tokenizer_records = 512, 500
    c.data.batch_size = 4
    c.train.num_steps, c.train.log_every = 24, 4
    c.train.eval_every, c.train.eval_batches, c.train.eval_prompts = 12, 2, 4
    c.checkpoint.save_every = 6
    c.decode.num_nodes, c.decode.max_new_tokens = 4, 16
    c.eval.max_records = 8


def to_dict(config: Config) -> dict[str, Any]:
    """Returns nested plain values that `from_dict` accepts and JSON can hold."""
    return dataclasses.asdict(config)
