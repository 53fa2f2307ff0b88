"""Decodes prompts with a trained run.

    python -m ssjax.generate --workdir RUN --prompt "#Person1#: ..."
    python -m ssjax.generate --workdir RUN --prompts_file FILE      (a prompt a line; - is stdin)
    echo "..." | python -m ssjax.generate --workdir RUN

Prints one output a line, in order. In a prompts file, \\n inside a line stands for a line break.
"""

import sys

from absl import flags

from ssjax import cli
from ssjax.errors import UserError
from ssjax.evaluation.compare import mark_runs
from ssjax.run import load_run

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory of ssjax.train.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", "", "One prompt a line; - is standard input.")
_RAW = flags.DEFINE_bool("raw", False, "Use prompts as they are, without the task's format.")
_SHOW_RUNS = flags.DEFINE_bool("show_runs", False, "Bracket what each pass emitted.")
_JSON = flags.DEFINE_string("json", "", "Also write outputs and statistics to this file.")
_CHANGES = cli.define_decode_flags()
flags.adopt_module_key_flags(cli)  # so that --help lists them


def main() -> int:
    """Decodes the prompts of the command line; returns the exit code."""
    prompts = read_prompts()
    run = load_run(_WORKDIR.value, _CHECKPOINT.value)
    answers = run.generate(prompts, raw=_RAW.value, **cli.given(_CHANGES))
    for answer in answers:
        text = answer.text
        if _SHOW_RUNS.value:
            text = mark_runs(answer.completion, run.tokenizer.decode)
        print(text.replace("\n", "\\n"))
    cli.write_json(
        _JSON.value,
        [
            {
                "prompt": answer.prompt,
                "output": answer.text,
                "finish": answer.completion.finish,
                "tokens": len(answer.completion.tokens),
                "calls": answer.completion.calls,
                "tokens_per_call": answer.tokens_per_call,
            }
            for answer in answers
        ],
    )
    return 0


def read_prompts() -> list[str]:
    """The prompts of the command line, of a file, or of standard input.

    Raises:
      UserError: no prompt, two sources, or a file that cannot be read.
    """
    if _PROMPT.value and _PROMPTS_FILE.value:
        raise UserError("give --prompt or --prompts_file, not both")
    if _PROMPT.value:
        prompts = [prompt.replace("\\n", "\n") for prompt in _PROMPT.value]
    elif _PROMPTS_FILE.value in ("", "-"):
        prompts = _lines(sys.stdin.buffer.read(), "standard input")
    else:
        try:
            with open(_PROMPTS_FILE.value, "rb") as file:
                prompts = _lines(file.read(), _PROMPTS_FILE.value)
        except OSError as error:
            raise UserError(f"{_PROMPTS_FILE.value}: {error.strerror}") from None
    if not prompts:
        raise UserError("no prompt; give --prompt TEXT, --prompts_file FILE, or lines on stdin")
    return prompts


def _lines(content: bytes, where: str) -> list[str]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{where}, line {line}: not UTF-8; convert the file") from None
    return [line.replace("\\n", "\n") for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    cli.run(main)
