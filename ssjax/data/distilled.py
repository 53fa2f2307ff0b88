"""Data whose targets a model wrote itself, as `python -m ssjax.distill` leaves it.

    distilled.json      of which model, for which task, how; whether all of it is there
    train.jsonl         the records of the task as they were, an object a line; where the model
    validation.jsonl    answered, its text stands beside the reference as CONTINUATION (see
    test.jsonl          `ssjax.data.tasks`) and is what training learns

Such a directory is read by the task it was made for, in place of the task's own files.
"""

from typing import Any

from ssjax.config import DataConfig
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.reading import read_json_object

FILE = "distilled.json"
_HINT = "write the directory again with python -m ssjax.distill"
# What is read of "asked", which holds all that decides the answers.
_ASKED = {"task": str, "weights": str, "max_prompt_length": int, "max_target_length": int}


def read_about(path: str) -> dict[str, Any] | None:
    """What distilled.json of a data directory says; None: nothing there was distilled.

    Raises:
      UserError: it cannot be read, or the writing has not come to its end.
    """
    file = places.of(path or ".") / FILE
    if not path or not file.is_file():
        return None
    about = read_json_object(file, _HINT)
    asked = about.get("asked")
    whole = isinstance(asked, dict) and isinstance(about.get("base"), str)
    if not whole or not all(isinstance(asked.get(key), kind) for key, kind in _ASKED.items()):
        raise UserError(f"{file}: not as it was written; {_HINT}")
    if not about.get("finished"):
        raise UserError(
            f"{path} is not finished; run the same python -m ssjax.distill again, which goes on "
            "where it stopped"
        )
    return about


def check_task(path: str, task_name: str) -> bool:
    """Whether a data directory was distilled. Raises: UserError: for another task."""
    about = read_about(path)
    if about is None:
        return False
    if about["asked"]["task"] != task_name:
        task = about["asked"]["task"]
        raise UserError(
            f"{path} was distilled for the task {task}, not {task_name}; give "
            f"--config.data.task={task}"
        )
    return True


def check_lengths(data: DataConfig) -> None:
    """Checks that training cuts prompts and targets where they were cut when they were written.

    Raises:
      UserError: it does not.
    """
    about = read_about(data.path)
    if about is None:
        return
    prompt, target = (about["asked"][f"max_{part}_length"] for part in ("prompt", "target"))
    if data.max_prompt_length != prompt:
        raise UserError(
            f"{data.path} was distilled from prompts of up to {prompt} tokens; give "
            f"--config.data.max_prompt_length={prompt}, or distill again"
        )
    if data.max_target_length > target:
        raise UserError(
            f"answers of {data.path} were cut at {target} tokens, and where they stop is nothing "
            f"to learn; give --config.data.max_target_length={target} or less, or distill again"
        )
