"""Decodes prompts with a trained run, an exported model or a Hugging Face directory.

    python -m ssjax.generate --workdir RUN --prompt "#Person1#: ..."
    python -m ssjax.generate --workdir RUN --prompts_file FILE.txt  (a prompt a line; - is stdin)
    python -m ssjax.generate --workdir RUN --prompts_file FILE.jsonl
    echo "..." | python -m ssjax.generate --workdir RUN
    python -m ssjax.generate --workdir BASE --adapter DIR --prompt "..."
    python -m ssjax.generate --workdir RUN --prompt "..." --stream

Prints one output a line, line N for prompt N; a blank line of a prompts file gives a blank line.
In a prompt \\n stands for a line break. In an output, line ends and backslashes are escaped as in
JSON: \\n, \\r, \\u2028, \\\\; --json has the text itself.

A line of FILE.jsonl is a JSON text, {"prompt": TEXT}, or {"messages": [{"role": "user", "content":
TEXT}, ...]} for chats, so that a prompt may hold anything.

Exit status 2 also where the model's output for a prompt is not finite: what came before is printed,
a line on stderr names the prompt, and its "finish" in --json is "error".
"""

from absl import flags

from ssjax.cli import model_flags, options, start
from ssjax.data import prompt_files
from ssjax.data.prompts import Prompt
from ssjax.decoding.completion import Completion
from ssjax.errors import EXIT_BAD_INPUT, UserError
from ssjax.run import Answer, Run

_MODEL = model_flags.define_model_flags()
_PROMPTS = options.define_prompt_flags()
_STREAM = flags.DEFINE_bool("stream", False, "Print text while it is decoded, prompt by prompt.")
_SHOW_RUNS = flags.DEFINE_bool("show_runs", False, "Bracket what each pass emitted.")
_JSON = options.define_output("json", "Also write outputs and statistics to this file.")
_LOG_PROBS = flags.DEFINE_bool(
    "log_probs", False, "Write the model's log-probability of every token to --json."
)
_CHANGES = options.define_decode_flags()
_CALIBRATION = options.define_calibration_flag()


def main() -> int:
    """Decodes the prompts of the command line; returns the exit code."""
    if _STREAM.value and (_LOG_PROBS.value or _SHOW_RUNS.value):
        raise UserError("--stream shows the text alone; leave --log_probs and --show_runs out")
    if _LOG_PROBS.value and not _JSON.value:
        raise UserError("--log_probs writes to a file; give one with --json FILE")
    changes = options.given(_CHANGES)
    asked = _PROMPTS.read()
    run = _MODEL.open()
    if _STREAM.value:
        answers = [_streamed(run, i, prompt, changes) for i, prompt in enumerate(asked)]
    else:
        answers = _generated(run, asked, changes)
    options.write_json(_JSON.value, [_record(answer) for answer in answers])
    failed = any(answer.completion.finish == "error" for answer in answers)
    return EXIT_BAD_INPUT if failed else 0


def _generated(run: Run, asked: list[Prompt], changes: dict) -> list[Answer]:
    """Prints and returns the answers."""
    places = [i for i, prompt in enumerate(asked) if not prompt_files.is_blank(prompt)]
    found = run.generate(
        [asked[i] for i in places],
        numbers=places,
        raw=_PROMPTS.raw,
        log_probs=_LOG_PROBS.value,
        calibration=_CALIBRATION.value,
        **changes,
    )
    by_place = dict(zip(places, found, strict=True))
    answers = [by_place.get(i, _NOTHING) for i in range(len(asked))]
    for answer in answers:
        text = answer.text
        if _SHOW_RUNS.value:
            text = run.mark_runs(answer.completion, answer.text)
        print(prompt_files.as_line(text))
    return answers


# Of a blank line.
_NOTHING = Answer("", "", Completion((), finish="empty", runs=(0,), kept=(), max_depth=0))


def _streamed(run: Run, number: int, prompt: Prompt, changes: dict) -> Answer:
    """Prints an answer while it grows, on one line; returns it."""
    if prompt_files.is_blank(prompt):
        print()
        return _NOTHING
    shown = 0
    for answer in run.stream_answers(
        prompt, number=number, raw=_PROMPTS.raw, calibration=_CALIBRATION.value, **changes
    ):
        print(prompt_files.as_line(answer.text[shown:]), end="", flush=True)
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
    start.run(main)
