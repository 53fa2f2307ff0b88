"""Compares plain and speculative decoding of a run on a split of its data.

python -m ssjax.evaluate --workdir RUN --split test --json OUT
"""

from absl import flags

from ssjax.cli import model_flags, options, start
from ssjax.evaluation import report
from ssjax.evaluation.prompts import with_data

_MODEL = model_flags.define_model_flags()
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to decode.")
_MAX_RECORDS = options.define_count("max_records", 0, "Stop after so many; 0: all.", least=0)
_DATA = flags.DEFINE_string("data_path", None, "Where the files are now; default: as trained.")
_JSON = options.define_output("json", "Also write the result to this file.")
_CHANGES = options.define_decode_flags()
_CALIBRATION = options.define_calibration_flag()


def main() -> int:
    """Evaluates the run of the command line; returns the exit code."""
    changes = options.given(_CHANGES)
    run = with_data(_MODEL.open(), _DATA.value)
    settings = {"calibration": _CALIBRATION.value} | changes
    evaluation = report.evaluate(run, _SPLIT.value, _MAX_RECORDS.value, **settings)
    options.write_json(_JSON.value, evaluation)
    report.show(evaluation)
    return 0


if __name__ == "__main__":
    start.run(main)
