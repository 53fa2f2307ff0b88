"""Writes a model's own answers to the prompts of a task, as data to train on.

    python -m ssjax.distill --workdir BASE --config FILE --target DIR
    python -m ssjax.distill --workdir BASE --config FILE --config.data.path=DATA --target DIR \\
        --num_records 2000 --temperatures 0,1
    python -m ssjax.train --config FILE --config.adaptation.mode=lossless \\
        --config.model.pretrained=BASE --config.data.path=DIR

Streams of a model that stays as it is draft best where they learned what it says itself. Task,
data, lengths and the distribution of tokens are those of the experiment; each prompt is formed and
cut as training does it, and answered with up to data.max_target_length tokens. BASE drafts in its
own way, which changes no answer.

DIR is read by the same task in place of its own files. Splits that are not answered are in it as
they are. What training would read as other tokens than those decoded is left out, and counted; an
answer that was cut has no end of sequence, as every target that is cut.

A killed command goes on where it was when it is given again, with the same bytes in the end.
"""

import math

from absl import flags

from ssjax.cli import command_line, model_flags, options, start
from ssjax.distillation.answers import Answerer
from ssjax.distillation.directory import distill
from ssjax.distillation.prompts import Asked
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.parallel import distributed
from ssjax.run import open_run
from ssjax.weights.identity import identity_of

_MODEL = model_flags.define_model_flags(int8=False)
_EXPERIMENT = options.define_experiment_flags(workdir=False)
_TARGET = command_line.require(
    flags.DEFINE_string("target", None, "Directory to write, or to go on with.")
)
_TEMPERATURES = flags.DEFINE_list(
    "temperatures", "0,1", "Of the answers, one drawn for each record; 0: greedy."
)
_NUM_RECORDS = options.define_count(
    "num_records", 0, "Of each split that is answered, evenly spread; 0: all.", least=0
)
_SPLITS = flags.DEFINE_list("splits", "train,validation", "Which are answered.")
_BATCH_SIZE = options.define_count("batch_size", 32, "Prompts decoded together.")
_SEED = options.define_count("seed", 0, "Of temperatures and samples.", least=0)
_JSON = options.define_output("json", "Also write what distilled.json holds to this file.")
_CALIBRATION = options.define_calibration_flag()


def main() -> int:
    """Distills the model of the command line; returns the exit code."""
    target = places.on_disk(_TARGET.value, "--target")
    asked = Asked(
        config=_EXPERIMENT.read(),
        temperatures=tuple(map(_number, _TEMPERATURES.value)),
        num_records=_NUM_RECORDS.value,
        splits=tuple(split.strip() for split in _SPLITS.value),
        seed=_SEED.value,
    )
    trained = _MODEL.read()
    weights, run = identity_of(trained), open_run(trained, _MODEL.mesh)
    del trained  # the decoder holds what it needs
    batch_size = _BATCH_SIZE.value
    way = run.way({}, batch_size, calibration=_CALIBRATION.value)
    about = distill(Answerer(run, way, asked, batch_size), weights, target)
    if distributed.is_first():  # the others know nothing of it
        options.write_json(_JSON.value, about)
        _show(about)
    return 0


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UserError(f"--temperatures: {text!r} is no number; give some such as 0,1")
    return value


def _show(about: dict) -> None:
    """Prints what was written."""
    for split, count in about["splits"].items():
        shares = ", ".join(f"{n:,} at {value}" for value, n in count["by_temperature"].items())
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in count["left_out"].items())
        print(
            f"{split}: {count['answers']:,} answers (temperature: {shares}), {count['tokens']:,} "
            f"tokens, {count['cut']:,} cut; left out: {left_out or 'none'}"
        )
    asked = about["asked"]
    print(
        f"train on them with --config.data.task={asked['task']} --config.data.path={_TARGET.value}"
    )


if __name__ == "__main__":
    start.run(main)
