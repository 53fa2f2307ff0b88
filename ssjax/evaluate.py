"""Compares plain and speculative decoding of a run on a split of its data.

python -m ssjax.evaluate --workdir RUN --split test --json OUT
"""

import dataclasses

from absl import flags

from ssjax import cli
from ssjax.evaluation import report
from ssjax.run import load

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory of ssjax.train.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_ADAPTER = flags.DEFINE_string(
    "adapter", None, "Of ssjax.export --format adapter, put on the base weights of --workdir."
)
_BASE = flags.DEFINE_string("base", None, "Where the base weights are now; default: as trained.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to decode.")
_MAX_RECORDS = cli.define_count("max_records", 0, "Stop after so many; 0: all.", least=0)
_DATA = flags.DEFINE_string("data_path", None, "Where the files are now; default: as trained.")
_JSON = cli.define_output("json", "Also write the result to this file.")
_CHANGES = cli.define_decode_flags()
_CALIBRATION = cli.define_calibration_flag()
_MESH = cli.define_mesh_flag()
flags.adopt_module_key_flags(cli)  # so that --help lists them


def main() -> int:
    """Evaluates the run of the command line; returns the exit code."""
    changes = cli.given(_CHANGES)
    run = load(
        _WORKDIR.value,
        _CHECKPOINT.value,
        adapter=_ADAPTER.value,
        base=_BASE.value,
        mesh=cli.open_mesh(_MESH),
    )
    if _DATA.value is not None:
        data = dataclasses.replace(run.config.data, path=_DATA.value)
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    evaluation = report.evaluate(
        run, _SPLIT.value, _MAX_RECORDS.value,
        calibration=_CALIBRATION.value, **changes,
    )  # fmt: skip
    cli.write_json(_JSON.value, evaluation)
    report.show(evaluation)
    return 0


if __name__ == "__main__":
    cli.run(main)
