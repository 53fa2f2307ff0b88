"""Whether a directory holds the run that is to be trained there.

The same are the settings that decide the weights, and what the data and the tokenizer hold,
wherever they lie. Every checkpoint carries the digests of both; data.json those of a run that has
no checkpoint yet.
"""

import json
from pathlib import Path
from typing import Any

from ssjax import config as config_lib
from ssjax import messages
from ssjax.config import Config
from ssjax.data.choice import data_digests, given_tokenizer, kept_tokenizer
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError
from ssjax.files import manifest, places
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic
from ssjax.parallel import distributed
from ssjax.weights import checkpoint, saved_steps
from ssjax.weights.base import read_config
from ssjax.weights.load import check_tokenizer

# Groups of the config that decide the weights; a run continues only with the same ones. Of the
# base, the data and the tokenizer the digests are compared instead.
_DECIDES_WEIGHTS = ("seed", "model", "streams", "adaptation", "loss", "optimizer", "data", "train")
_MAY_CHANGE = (
    "model.pretrained",
    "data.path",
    "data.mixture",
    "data.tokenizer",
    "data.prepared_dir",
    "train.num_steps",
    "train.num_epochs",
    "train.accumulation",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.eval_prompts",
    "train.patience",
    "train.remat",
    "train.fused_attention",
    "train.profile_at",
    "train.profile_steps",
    "train.profiler_port",
    "train.loggers",
)

# Why the others may not.
_WHY = {
    "seed": "it decides the weights that the run began with and the order of its records",
    "model": "its weights have that form",
    "streams": "its weights have that form",
    "adaptation": "what it trains has that form",
    "loss": "until now it minimised that loss",
    "optimizer": "the state of its optimizer comes from those settings",
    "data": "its batches and their order follow from it",
    "train": "its steps until now were made so",
}


def check_workdir(workdir: Path, config: Config) -> dict[str, str]:
    """Checks that a directory holds no run, or this one; returns the digests of its data.

    Raises:
      UserError: it holds another run; names the first differing key, or the splits.
      DamagedError: its tokenizer is not the one it was trained with.
    """
    digests = data_digests(config)
    about = checkpoint.read_about(workdir / "checkpoints")
    _check_settings(workdir, config)
    _check_data(workdir, config, about, digests)
    _check_tokenizer(workdir, config, about)
    return digests


def claim_workdir(workdir: Path, config: Config) -> None:
    """The same, and makes the directory that of this run: writes config.json and data.json.

    Raises:
      UserError: as `check_workdir`, or the run is beyond its last step.
    """
    digests = check_workdir(workdir, config)
    _check_steps(workdir, config.train.num_steps)
    write_atomic(workdir / "config.json", to_json(config_lib.to_dict(config)))
    values = {"path": config.data.path, "sha256": digests}
    write_atomic(workdir / "data.json", to_json(values))


def about_run(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What every checkpoint of a run carries; to be called by all processes.

    Raises:
      UserError: the data of this process cannot be read, or is not that of the first process.
    """
    digests = data_digests(config)
    if len(set(distributed.gather(json.dumps(digests)))) > 1:
        raise UserError(
            f"the processes of this run find different data in {config.data.path}; give a path "
            "with the same files on every host"
        )
    return {"data": digests, "tokenizer": manifest.digests(tokenizer.files)}


def _check_settings(workdir, config) -> None:
    if not (workdir / "config.json").exists():
        return
    here, now = (_flat(config_lib.to_dict(c)) for c in (read_config(workdir), config))
    for key, value in now.items():
        decides = key.split(".")[0] in _DECIDES_WEIGHTS and key not in _MAY_CHANGE
        if key == "model.max_positions" and config.model.positions == "rotary":
            continue  # decides about a warning
        if decides and here[key] != value:
            raise UserError(
                f"{workdir} holds a run with {key}={here[key]!r}, not {value!r}: "
                f"{_WHY[key.split('.')[0]]}; choose another --config.workdir, or give that value "
                "to continue the run"
            )


def _check_steps(workdir: Path, num_steps: int) -> None:
    """A run may end sooner or later than it was begun for, but not before where it is."""
    if not (workdir / "config.json").exists():
        return
    reached = max(saved_steps.steps(workdir / "checkpoints"), default=0)
    if reached > num_steps:
        raise UserError(
            f"{workdir} is at step {reached}, beyond train.num_steps={num_steps}; give at least "
            "that many, or choose another --config.workdir"
        )
    before = read_config(workdir).train.num_steps
    if before != num_steps:
        messages.say_once(
            f"{workdir} was to end at step {before} and now ends at {num_steps}; from here the "
            "learning rate follows the schedule of the new end"
        )


def _check_data(workdir, config, about, digests) -> None:
    known, file = about and about["data"], workdir / "data.json"
    if known is None and file.exists():
        known = read_json_object(file).get("sha256")
    where = config.data.path or "the generated sample"
    if isinstance(known, dict):
        names = [*digests, *(name for name in known if name not in digests)]
        other = [name for name in names if known.get(name) != digests.get(name)]
        if other:
            raise UserError(
                f"{workdir} holds a run on other data: {', '.join(other)} of {where} differ from "
                "what it was trained on; give that data with --config.data.path, or choose another "
                "--config.workdir"
            )
    elif saved_steps.steps(workdir / "checkpoints"):
        messages.say_once(
            f"{workdir} was begun by an older version, which kept no digest of its data; {where} "
            "is taken for the same"
        )


def _check_tokenizer(workdir, config, about) -> None:
    kept, given = kept_tokenizer(workdir), config.data.tokenizer
    if kept is None:
        return
    check_tokenizer(workdir, kept, about)
    # The run has its own copy: one that has gone meanwhile is not missed.
    if given and places.of(given).exists() and given_tokenizer(given).files != kept.files:
        raise UserError(
            f"{workdir} holds a run with another tokenizer than data.tokenizer={given}; choose "
            "another --config.workdir, or give the tokenizer of the run"
        )


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat
