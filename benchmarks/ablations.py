"""What makes streams accept more: one change at a time, on a frozen base.

    python benchmarks/ablations.py --config experiments/dialogsum.py \
        --config.model.pretrained=BASE --target DIR --json docs/results/ablations/sample.json

BASE: the run of that experiment with streams.parent_rank=0 and streams.root_rank=0, exported with
--format orbax. Every row is a lossless run of the experiment with one change, for each seed, which
draws weights, order of the data and, where no files are given, the generated records. The whole
test split is then decoded, plainly and with the row's streams, and passes are compared with those
of the row `default` on the same prompts: gain is tokens per call over the default's, less one,
with its 95 % bootstrap interval over prompts.

What is done lies in DIR/SEED/ROW.json; the same command continues where the last one stopped, also
inside a training. The result is made of these files, finished or not.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import flags

import ssjax
from ssjax import config as config_lib
from ssjax.cli import command_line, options, start
from ssjax.config import Config
from ssjax.decoding import candidates
from ssjax.decoding.drafters import PlainDrafter, Way
from ssjax.decoding.request import make_request
from ssjax.errors import EXIT_RESUMABLE
from ssjax.evaluation.comparison import Comparison, Measurement
from ssjax.evaluation.prompts import of_split
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import make_directory, write_atomic
from ssjax.messages import say
from ssjax.metrics.bootstrap import interval
from ssjax.models import lora
from ssjax.models.parameters import count
from ssjax.models.transformer import abstract_params
from ssjax.run import Run

_EXPERIMENT = options.define_experiment_flags(workdir=False)
_TARGET = command_line.require(flags.DEFINE_string("target", None, "Where runs and rows are kept."))
_SEEDS = options.define_count("seeds", 2, "How many seeds, from 0.")
_ROWS = flags.DEFINE_list("rows", [], "Only these; default: all.")
_JSON = flags.DEFINE_string("json", "", "Write the result to this file.")

_BASE = {
    "adaptation.mode": "lossless",
    "loss.main_weight": 0.0,
    "loss.stream_weight": 1.0,
    "train.eval_prompts": 0,
    "train.eval_every": 0,
}
_CANDIDATES = "candidates.NUM_RANKED_ANEW"  # a constant of `ssjax.decoding`, not a key


def _row(key: str, *values) -> dict[str, dict[str, Any]]:
    """Rows that set one key, named by its last part and the value."""
    return {f"{key.rpartition('.')[2]}-{value}": {key: value} for value in values}


def _taught(divergence: str, share: float) -> dict[str, Any]:
    return {"loss.distillation": share, "loss.divergence": divergence}


ROWS = {
    "default": {},
    **_row("streams.num_streams", 6, 8),
    **_row("streams.parent_rank", 16, 32, 128, 256),
    "lora-8": {"adaptation.alpha": 256.0},  # alpha / rank; the default's is 2
    "lora-16": {"adaptation.alpha": 512.0},
    "lora-32": {"adaptation.alpha": 1024.0},
    "lora-64": {"adaptation.alpha": 2048.0},
    "kl": _taught("kl", 1.0),
    "kl-half": _taught("kl", 0.5),
    "total-variation": _taught("total_variation", 1.0),
    "mixed": _taught("mixed", 1.0),
    **_row("loss.stream_decay", 0.8, 0.6),
    **_row("streams.init_rank", 64),
    "no-root": {"streams.root_rank": 0},
    "no-parent": {"streams.parent_rank": 0},
    "paper": {"streams.root_rank": 0, "streams.parent_rank": 0},
    "medusa": {"drafter.kind": "medusa"},
    "medusa-parent": {"drafter.kind": "medusa", "drafter.parent_rank": 64},
    # The default's run, decoded with another number of candidates a stream.
    **{f"candidates-{number}": {_CANDIDATES: number} for number in (8, 32, 64)},
}


def config_of(row: str, seed: int, directory: Path) -> Config:
    """The run of a row."""
    values = config_lib.to_dict(_EXPERIMENT.read())
    run = "default" if _CANDIDATES in ROWS[row] else row
    own = {key: value for key, value in ROWS[row].items() if key != _CANDIDATES}
    changes = _BASE | own | {"seed": seed, "workdir": str(directory / run)}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = value
    return config_lib.from_dict(values)


def measure(run: Run) -> dict[str, Any]:
    """The test prompts, decoded plainly and as the run drafts."""
    prompts = of_split(run, "test", run.config.eval.max_records).ids
    request = make_request(run.config.decode, prompts)
    measured = [
        Measurement(tuple(run.decoder.generate(request, way)), 0.0, 0.0)
        for way in (Way(PlainDrafter(), True), run.configured_way(run.config.decode))
    ]
    drafted = measured[1]
    return {
        "prompts": len(prompts),
        "identical": Comparison(*measured).num_identical,
        "tokens_per_call": drafted.tokens_per_call,
        "acceptance_by_depth": drafted.acceptance_by_depth,
        "passes_by_prompt": [completion.calls for completion in drafted.completions],
        "tokens_by_prompt": [sum(completion.runs[1:]) for completion in drafted.completions],
    }


def train_and_measure(row: str, seed: int, directory: Path) -> dict[str, Any] | None:
    """One row of one seed; None: a signal stopped it, saved."""
    config = config_of(row, seed, directory)
    run = ssjax.train(config)
    if run.step < config.train.num_steps:
        return None
    added, _ = lora.split_trainable(abstract_params(run.decoder.model), run.config.adaptation)
    number = ROWS[row].get(_CANDIDATES, candidates.NUM_RANKED_ANEW)
    with mock.patch.object(candidates, "NUM_RANKED_ANEW", number):
        measured = measure(run)
    return {"changes": ROWS[row], "seed": seed, "parameters": count(added)} | measured


def gain(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How many more tokens a call has than that of another row, on the same prompts."""
    columns = [
        found[f"{name}_by_prompt"] for found in (own, other) for name in ("tokens", "passes")
    ]

    def more(sums):
        return sums[0] / sums[1] * sums[3] / sums[2] - 1

    statistics = np.stack(columns, axis=1)
    return {"gain": float(more(statistics.sum(axis=0))), "interval": interval(statistics, more)}


def summary(rows: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Plain values of all rows that there are, by name and seed."""
    found = {}
    for name, by_seed in rows.items():
        results = []
        for seed, result in by_seed.items():
            kept = {key: value for key, value in result.items() if not key.endswith("_by_prompt")}
            default = rows["default"].get(seed)
            results.append(kept | (gain(result, default) if default else {}))
        changes, parameters = (results[0][key] for key in ("changes", "parameters"))
        runs = [{k: v for k, v in r.items() if k not in ("changes", "parameters")} for r in results]
        found[name] = {"changes": changes, "parameters": parameters, "runs": runs}
    return found


def show(rows: dict[str, Any]) -> None:
    """A line for each row and seed, to stdout."""
    print(f"{'row':18s} seed parameters tokens per call   gain  95 % interval   by depth")
    for name, row in rows.items():
        for run in row["runs"]:
            low, high = run.get("interval", (0.0, 0.0))
            cells = [f"{name:18s} {run['seed']:4d} {row['parameters']:10,d}"]
            cells.append(f"{run['tokens_per_call']:15.3f} {100 * run.get('gain', 0.0):+6.1f}")
            cells.append(f"{100 * low:+6.1f} to {100 * high:+5.1f} ")
            cells += [f"{share:.2f}"[1:] for share in run["acceptance_by_depth"]]
            print(" ".join(cells))


def main() -> int:
    """Does what is not done yet, and writes the result; returns the exit code."""
    target = Path(_TARGET.value)
    for seed in range(_SEEDS.value):
        for row in _ROWS.value or ROWS:
            path = target / str(seed) / f"{row}.json"
            if path.exists():
                continue
            say(f"seed {seed}: {row}")
            result = train_and_measure(row, seed, make_directory(path.parent))
            if result is None:
                return EXIT_RESUMABLE
            write_atomic(path, to_json(result))
            jax.clear_caches()
    rows = {}
    for row in ROWS:
        paths = {seed: target / str(seed) / f"{row}.json" for seed in range(_SEEDS.value)}
        own = {seed: read_json_object(path) for seed, path in paths.items() if path.exists()}
        rows |= {row: own} if own else {}
    result = summary(rows)
    show(result)
    options.write_json(_JSON.value, result)
    return 0


if __name__ == "__main__":
    start.restart_with_huge_pages()
    start.run(main)
