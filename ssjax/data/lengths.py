"""How long the records of a source are, in tokens: measured once, by all cores, and kept.

Lengths are kept beside the prepared data they belong to, by the tokenizer and the task, in full:
what training cuts may change without measuring again. What is found is compared with a few records
before it is believed.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssjax.data.records import Chosen, Mixture, RecordSource
from ssjax.data.tasks import OwnTask, Record, Task, get_task, register_task
from ssjax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_files
from ssjax.errors import UserError
from ssjax.files import manifest
from ssjax.files.writing import write_atomic
from ssjax.messages import say

# A process of its own costs some seconds of imports, about what measuring this many takes.
_RECORDS_A_PROCESS = 10_000

_COMPARED = 16  # records that kept lengths are compared with
_DONE = ".done"  # how the file of what a process found ends
_FORM = 2  # of the file; another one is measured again


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt and of the target of every record, uncut."""

    prompts: np.ndarray  # [N] int
    targets: np.ndarray  # [N] int, end of sequence included
    # [N] bool, whether the prompt begins with prompt and target of the record before, as that of
    # the next answer in a conversation does, where the template writes what came before alike.
    extends: np.ndarray

    def cut(self, max_prompt_length: int, max_target_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens after cutting: (all of each record, those of its target)."""
        targets = np.minimum(self.targets, max_target_length)
        return np.minimum(self.prompts, max_prompt_length) + targets, targets

    def joined(self, max_prompt_length: int, max_target_length: int) -> np.ndarray:
        """Runs of records of which each extends the one before, as far as nothing is cut.

        The targets of a run together are not longer than one target may be.

        Returns:
          [R] int, the first record of each run.
        """
        fit = self.fit(max_prompt_length, max_target_length)
        may_go_on = self.extends & fit & np.roll(fit, 1)
        begins, num_targets = [], 0
        for number, (goes_on, targets) in enumerate(
            zip(may_go_on.tolist(), self.targets.tolist(), strict=True)
        ):
            num_targets += targets
            if not goes_on or num_targets > max_target_length:
                begins.append(number)
                num_targets = targets
        return np.array(begins)

    def fit(self, max_prompt_length: int, max_target_length: int) -> np.ndarray:
        """Whether nothing would be cut, [N] bool."""
        return (self.prompts <= max_prompt_length) & (self.targets <= max_target_length)


def lengths_of(
    source: Sequence[Record], task: Task, tokenizer: Tokenizer, *, num_processes: int | None = None
) -> Lengths:
    """The lengths of all records of a source; of a prepared one as kept, if they are.

    Args:
      source: its records.
      task: says what is prompt and what is target.
      tokenizer: encodes both.
      num_processes: that measure together, of a prepared source; None: by its size and the cores.

    Raises:
      UserError: a record cannot be encoded.
    """
    if isinstance(source, Chosen):
        whole = lengths_of(source.source, task, tokenizer, num_processes=num_processes)
        numbers = source.numbers
        follows = np.diff(numbers, prepend=-2) == 1
        return Lengths(
            whole.prompts[numbers], whole.targets[numbers], whole.extends[numbers] & follows
        )
    if isinstance(source, Mixture):
        parts = [
            lengths_of(s, task, tokenizer, num_processes=num_processes) for s in source.sources
        ]
        together = [(each.prompts, each.targets, each.extends) for each in parts]
        return Lengths(*map(np.concatenate, zip(*together, strict=True)))
    if not isinstance(source, RecordSource):
        return _measure(source, task, tokenizer, range(len(source)))
    file = source.directory.parent.parent / "lengths" / f"{_key(source, task, tokenizer)}.npz"
    if (kept := _read(file, source, task, tokenizer)) is not None:
        return kept
    if num_processes is None:
        num_processes = min(os.cpu_count() or 1, -(-len(source) // _RECORDS_A_PROCESS))
    if len(source) >= _RECORDS_A_PROCESS:
        say(f"measuring {len(source):,} records, once, in {num_processes} processes")
    measured = (
        _measure(source, task, tokenizer, range(len(source)))
        if num_processes == 1
        else _measure_together(source, task, tokenizer, num_processes)
    )
    try:
        _write(file, measured)
    except UserError as error:  # the data may be shared and not ours to write to
        say(f"{error}; lengths are measured again at the next start")
    return measured


def _measure(
    source: Sequence[Record], task: Task, tokenizer: Tokenizer, numbers: Sequence[int]
) -> Lengths:
    found = []

    def encoded(number):
        record = source[number]
        return task.prompt_ids(record, tokenizer), task.target_ids(record, tokenizer)

    known: tuple[int, list[int]] = (-1, [])  # a record and all its ids
    for number in numbers:
        if known[0] != number - 1 and number > 0:
            known = number - 1, sum(encoded(number - 1), [])
        prompt, target = encoded(number)
        extends = number > 0 and prompt[: len(known[1])] == known[1]
        found.append((len(prompt), len(target), extends))
        known = number, prompt + target
    return Lengths(*map(np.array, zip(*found, strict=True)))


def _measure_together(
    source: RecordSource, task: Task, tokenizer: Tokenizer, num_processes: int
) -> Lengths:
    """By processes of their own: encoding holds Python's lock, and forks of JAX may hang.

    They are started as programs, so that they run no file of the user again.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",  # an accelerator is for one process
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    ends = [len(source) * i // num_processes for i in range(num_processes + 1)]
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / str(number) for number in range(num_processes)]
        for first, end, file in zip(ends, ends[1:], files, strict=False):
            job = {
                "directory": source.directory,
                "split": source.split,
                "task": _definition(task),
                "tokenizer": tokenizer.files,
                "numbers": range(first, end),
            }
            file.write_bytes(pickle.dumps(job))
        command = [sys.executable, "-c", f"from {__name__} import work; work()"]
        with contextlib.ExitStack() as stack:
            workers = []
            for file in files:
                worker = subprocess.Popen(
                    [*command, str(file)], env=environment, stdout=subprocess.DEVNULL
                )
                stack.callback(_end, worker)
                workers.append(worker)
            for worker in workers:
                worker.wait()
        parts = [_result(file.with_suffix(_DONE)) for file in files]
    return Lengths(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def work() -> None:
    """What a process of `lengths_of` does: the job in the file that its argument names."""
    from ssjax.data.builders import open_prepared

    file = Path(sys.argv[1])
    job = pickle.loads(file.read_bytes())
    try:
        definition = job["task"]
        if len(definition) > 1:
            register_task(**definition)
        task, source = get_task(definition["name"]), open_prepared(job["directory"], job["split"])
        tokenizer = tokenizer_from_files(job["tokenizer"], "of the run")
        measured = _measure(source, task, tokenizer, job["numbers"])
        result: Any = (measured.prompts, measured.targets, measured.extends)
    except UserError as error:
        result = str(error)
    file.with_suffix(_DONE).write_bytes(pickle.dumps(result))


def _end(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.wait()


def _result(file: Path) -> tuple[np.ndarray, ...]:
    if not file.exists():
        raise UserError("a process that measured records was ended; is there memory left?")
    result = pickle.loads(file.read_bytes())
    if isinstance(result, str):
        raise UserError(result)
    return result


def _definition(task: Task) -> dict[str, Any]:
    """Arguments of `register_task` that make the same of prepared records; or the name alone."""
    if not isinstance(task, OwnTask):
        return {"name": task.name}
    return {
        "name": task.name,
        "prompt": task.columns.prompt,
        "answer": task.columns.answer,
        "symbols": task.symbols,
        "glue": task.glue,
    }


def _key(source: RecordSource, task: Task, tokenizer: Tokenizer) -> str:
    """What lengths depend on beside the prepared data."""
    about = [_FORM, source.split, _definition(task), manifest.digests(tokenizer.files)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path, source: RecordSource, task: Task, tokenizer: Tokenizer) -> Lengths | None:
    """What is kept; None: nothing, or something else."""
    try:
        with np.load(io.BytesIO(file.read_bytes())) as arrays:
            kept = Lengths(arrays["prompts"], arrays["targets"], arrays["extends"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if not len(kept.prompts) == len(kept.targets) == len(kept.extends) == len(source):
        return None
    compared = np.unique(np.linspace(0, len(source) - 1, _COMPARED).astype(int))
    again = _measure(source, task, tokenizer, compared.tolist())
    same = (
        np.array_equal(kept.prompts[compared], again.prompts)
        and np.array_equal(kept.targets[compared], again.targets)
        and np.array_equal(kept.extends[compared], again.extends)
    )
    return kept if same else None


def _write(file: Path, lengths: Lengths) -> None:
    content = io.BytesIO()
    arrays = {
        "prompts": lengths.prompts.astype(np.int32),
        "targets": lengths.targets.astype(np.int32),
        "extends": lengths.extends,
    }
    np.savez(content, **arrays)
    write_atomic(file, content.getvalue())
