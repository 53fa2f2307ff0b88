"""Finds the fastest way to decode a run on this device, and keeps it beside the run.

    python -m ssjax.calibrate --workdir RUN
    python -m ssjax.calibrate --workdir RUN --batch_sizes 1,4,16 --nodes 4,16,64 --plot PICTURE.png

Decodes validation prompts plainly, replays the outputs to see what every candidate tree would
have had accepted, times a pass of each in both execution orders, and chooses by tokens per
second; plain decoding is a candidate and stays where no draft beats it by more than 3 %. The
choice is written to calibration.json in the run directory. `generate`, `evaluate` and
`Run.generate` follow it unless told how to draft, or --nocalibration.
"""

from absl import flags

from ssjax import messages
from ssjax.cli import model_flags, options, start
from ssjax.errors import UserError
from ssjax.evaluation import best_way, candidates, pictures
from ssjax.evaluation.best_way import calibrate, measure_acceptance, require_streams
from ssjax.evaluation.prompts import examples_of
from ssjax.parallel import distributed

_MODEL = model_flags.define_model_flags()
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", "1,4", "Prompts decoded together.")
_NUM_PROMPTS = options.define_count("num_prompts", 50, "Prompts, at most.")
_NODES = flags.DEFINE_list("nodes", "2,4,8,16,32", "Draft nodes per pass, the root not counted.")
_JSON = options.define_output("json", "Also write the result to this file.")
_PLOT = options.define_plot_flag()


def main() -> int:
    """Calibrates the run of the command line; returns the exit code."""
    batch_sizes, node_counts = options.counts(_BATCH_SIZES), options.counts(_NODES)
    run = _MODEL.open()
    require_streams(run.decoder.model, _MODEL.workdir)
    prompts = [each.prompt_ids for each in examples_of(run, "validation", _NUM_PROMPTS.value)]
    if not prompts:
        raise UserError("the validation split has no records to calibrate on")
    max_new_tokens = run.config.decode.max_new_tokens
    messages.say(f"decoding {len(prompts)} validation prompts and replaying them")
    acceptance = measure_acceptance(
        run.decoder, prompts, node_counts=node_counts, max_new_tokens=max_new_tokens
    )
    calibrations = []
    for batch_size in batch_sizes:
        messages.say(f"timing passes at batch size {batch_size}; each kind compiles once")
        calibrations.append(
            calibrate(
                run.decoder,
                acceptance,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                on_compiled=_say_compiled,
            )
        )
    entries = [best_way.entry_of(run.situation, acceptance, each) for each in calibrations]
    distributed.first(lambda: best_way.store(run.workdir, entries))
    options.write_json(_JSON.value, {"calibrations": entries})
    if _PLOT.value:
        title = f"{run.task.name}, step {run.step}, {run.situation.device}, {run.situation.dtype}"
        picture = pictures.of_calibration(acceptance, calibrations, title)
        options.write_output(_PLOT.value, picture)
    candidates.show(run, acceptance, calibrations)
    print(f"kept in {run.workdir / best_way.FILE}")
    return 0


def _say_compiled(number: int) -> None:
    if number % 10 == 0:
        messages.say(f"compiled {number}")


if __name__ == "__main__":
    start.run(main)
