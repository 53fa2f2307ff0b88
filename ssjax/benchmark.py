"""Compares drafters on one model: same prompts, same loop, same counter, in turn.

    python -m ssjax.benchmark --workdir RUN --drafters plain,streams,prompt_lookup
    python -m ssjax.benchmark --workdir RUN --batch_sizes 1,4,16 --json OUT --markdown OUT.md \\
        --drafters streams,streams:num_nodes=16,medusa@HEADS,draft_model@SMALL:num_nodes=4
    python -m ssjax.benchmark --workdir RUN --questions FILE.jsonl --plot PICTURE.png

A drafter is NAME[@DIR][:KEY=VALUE...]: DIR is the run of Medusa heads on the same frozen base, or
the draft model; keys are those of `DecodeConfig` (num_nodes, tree, branching=2/1/1, deferred, ...);
"calibrated" is what `ssjax.calibrate` chose.
Plain decoding always takes part: speedup is against it, in the same run. A questions file is that
of Spec-Bench or MT-bench: a JSON object a line, the prompt in "turns"[0].

    tokens per call     tokens emitted by decode passes / decode passes (1.0 for plain)
    call reduction      decode passes of plain / of the drafter
    pass                milliseconds of a decode pass of the batch, everything included
    step cost           call reduction / speedup of the decode passes alone
    first token         milliseconds until the first token of a batch is known, the median
    tokens per second   prefill included, with a 95 % bootstrap interval over batches
    extra parameters    what the drafter has beside the model
    the last column     the main metric of the task, with its interval over records
"""

from absl import flags

from ssjax.cli import model_flags, options, start
from ssjax.errors import UserError
from ssjax.evaluation import pictures
from ssjax.evaluation import prompts as prompts_lib
from ssjax.evaluation.benchmark_tables import markdown
from ssjax.evaluation.entries import open_entries, time_entries
from ssjax.evaluation.prompts import Prompts, with_data
from ssjax.metrics.quality import require_packages
from ssjax.run import Run

_MODEL = model_flags.define_model_flags(adapter=False)
_DRAFTERS = flags.DEFINE_list("drafters", "auto", "NAME[@DIR][:KEY=VALUE...], several by comma.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", "1", "Prompts decoded together, several by comma.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Whose prompts.")
_DATA = flags.DEFINE_string("data_path", None, "Where the files are now; default: as trained.")
_QUESTIONS = flags.DEFINE_string("questions", "", "Prompts from this file instead of a split.")
_NUM_PROMPTS = options.define_count("num_prompts", 100, "Prompts, at most.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Longest output; default: the run's."
)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0: greedy; default: the run's.")
_JSON = options.define_output("json", "Also write the result to this file.")
_PLOT = options.define_plot_flag()
_MARKDOWN = options.define_output("markdown", "Also write the table to this file.")


def main() -> int:
    """Benchmarks the drafters of the command line; returns the exit code."""
    batch_sizes = options.counts(_BATCH_SIZES)
    changes = options.given({"max_new_tokens": _MAX_NEW_TOKENS, "temperature": _TEMPERATURE})
    run = with_data(_MODEL.open(), _DATA.value)
    decode = run.decode_config(**changes)
    entries = open_entries(run, _DRAFTERS.value)
    result = time_entries(run, entries, _read_prompts(run), decode, batch_sizes)
    options.write_json(_JSON.value, result)
    options.write_output(_MARKDOWN.value, markdown(result))
    if _PLOT.value:
        title = f"{result['source']}, {result['parameters']:,} parameters, {result['device']}"
        options.write_output(_PLOT.value, pictures.of_benchmark(result["rows"], title))
    print(markdown(result), end="")
    return 0


def _read_prompts(run: Run) -> Prompts:
    if _QUESTIONS.value:
        return prompts_lib.of_questions(run, _QUESTIONS.value, _NUM_PROMPTS.value)
    require_packages(run.task.metrics)
    prompts = prompts_lib.of_split(run, _SPLIT.value, _NUM_PROMPTS.value)
    if not prompts.ids:
        raise UserError(f"split {_SPLIT.value!r} has no records")
    return prompts


if __name__ == "__main__":
    start.run(main)
