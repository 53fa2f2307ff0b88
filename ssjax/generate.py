"""Decodes prompts with a trained run, an exported model or a Hugging Face directory.

    python -m ssjax.generate --workdir RUN --prompt "#Person1#: ..."
    python -m ssjax.generate --workdir RUN --prompts_file FILE      (a prompt a line; - is stdin)
    echo "..." | python -m ssjax.generate --workdir RUN
    python -m ssjax.generate --workdir BASE --adapter DIR --prompt "..."
    python -m ssjax.generate --workdir RUN --prompt "..." --stream

Prints one output a line, in order. In a prompts file, \\n inside a line stands for a line break.
"""

from absl import flags

from ssjax import cli
from ssjax.errors import UserError
from ssjax.evaluation.compare import mark_runs
from ssjax.run import Answer, Run, load_run, visible_text

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory of ssjax.train.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_ADAPTER = flags.DEFINE_string(
    "adapter", None, "Of ssjax.export --format adapter, put on the base weights of --workdir."
)
_BASE = flags.DEFINE_string("base", None, "Where the base weights are now; default: as trained.")
_PROMPTS = cli.define_prompt_flags()
_STREAM = flags.DEFINE_bool("stream", False, "Print text while it is decoded, prompt by prompt.")
_SHOW_RUNS = flags.DEFINE_bool("show_runs", False, "Bracket what each pass emitted.")
_JSON = cli.define_output("json", "Also write outputs and statistics to this file.")
_LOG_PROBS = flags.DEFINE_bool(
    "log_probs", False, "Write the model's log-probability of every token to --json."
)
_CHANGES = cli.define_decode_flags()
_CALIBRATION = cli.define_calibration_flag()
_MESH = cli.define_mesh_flag()
flags.adopt_module_key_flags(cli)  # so that --help lists them


def main() -> int:
    """Decodes the prompts of the command line; returns the exit code."""
    if _STREAM.value and (_LOG_PROBS.value or _SHOW_RUNS.value):
        raise UserError("--stream shows the text alone; leave --log_probs and --show_runs out")
    if _LOG_PROBS.value and not _JSON.value:
        raise UserError("--log_probs writes to a file; give one with --json FILE")
    changes = cli.given(_CHANGES)
    prompts = _PROMPTS.read()
    run = load_run(
        _WORKDIR.value,
        _CHECKPOINT.value,
        adapter=_ADAPTER.value,
        base=_BASE.value,
        mesh=cli.open_mesh(_MESH),
    )
    if _STREAM.value:
        answers = [_streamed(run, i, prompt, changes) for i, prompt in enumerate(prompts)]
        cli.write_json(_JSON.value, [_record(answer) for answer in answers])
        return 0
    answers = run.generate(
        prompts,
        raw=_PROMPTS.raw,
        log_probs=_LOG_PROBS.value,
        calibration=_CALIBRATION.value,
        **changes,
    )
    for answer in answers:
        text = answer.text
        if _SHOW_RUNS.value:
            text = mark_runs(answer.completion, visible_text(run, answer.text, answer.completion))
        print(text.replace("\n", "\\n"))
    cli.write_json(_JSON.value, [_record(answer) for answer in answers])
    return 0


def _streamed(run: Run, number: int, prompt: str, changes: dict) -> Answer:
    """Prints an answer while it grows, on one line; returns it."""
    shown = 0
    for answer in run.stream(
        prompt, number=number, raw=_PROMPTS.raw, calibration=_CALIBRATION.value, **changes
    ):
        print(answer.text[shown:].replace("\n", "\\n"), end="", flush=True)
        shown = len(answer.text)
    print()
    return answer


def _record(answer: Answer) -> dict:
    """Plain values of one answer."""
    completion = answer.completion
    record = {
        "prompt": answer.prompt,
        "output": answer.text,
        "finish": completion.finish,
        "tokens": len(completion.tokens),
        "calls": completion.calls,
        "tokens_per_call": answer.tokens_per_call,
        "acceptance": answer.acceptance,
    }
    if completion.log_probs is not None:
        record |= {"token_ids": completion.tokens, "log_probs": completion.log_probs}
    return record


if __name__ == "__main__":
    cli.run(main)
