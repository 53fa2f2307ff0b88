"""The data sets of the tasks: what their files are called, where they come from, and TFDS builders.

No TensorFlow is needed, and nothing is downloaded: the builders read the files that their
authors publish, those of the user, or the generated sample.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ssjax.data import distilled, sample
from ssjax.data.lines import (
    SourceFile,
    conversation,
    dialogsum_records,
    e2e_pairs,
    field,
    json_lines,
    kept_lines,
    own_lines,
)
from ssjax.data.tasks import CHAT, DIALOGSUM, E2E_NLG, PAIRS, SQL_CONTEXT, OwnTask, get_task
from ssjax.errors import UserError
from ssjax.files.reading import read_bytes

SPLITS = ("train", "validation", "test")


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads one source file per split, in file order."""

    VERSION = tfds.core.Version("1.0.0")

    # Nothing is downloaded, so there are no checksums. Looking for them beside this module needs
    # importlib_resources, which TFDS 4.9.10 imports without requiring it.
    url_infos = None

    def __init__(self, *, files: Mapping[str, SourceFile], **kwargs):
        self._files = files
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split, file) for split, file in self._files.items()}

    def _dataset_info(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # file order is kept; the pipeline shuffles
        )


class Dialogsum(Builder, skip_registration=True):
    """Dialogues with one summary, or in the test split three."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info(
            {
                "fname": text(),
                "dialogue": text(),
                "topic": text(),
                "summaries": tfds.features.Sequence(text()),
            }
        )

    def _generate_examples(self, split, file):
        del split  # the number of summaries is seen from the fields
        yield from enumerate(dialogsum_records(file))


class E2eNlg(Builder, skip_registration=True):
    """Meaning representations (mr) with one reference in train, else with all of them."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"mr": text(), "references": tfds.features.Sequence(text())})

    def _generate_examples(self, split, file):
        pairs = e2e_pairs(file)
        if split == "train":
            records = ({"mr": mr, "references": (reference,)} for mr, reference in pairs)
        else:
            grouped: dict[str, list[str]] = {}
            for mr, reference in pairs:
                grouped.setdefault(mr, []).append(reference)
            records = ({"mr": mr, "references": texts} for mr, texts in grouped.items())
        yield from enumerate(records)


class SqlContext(Builder, skip_registration=True):
    """A CREATE TABLE context with a question, and the SQL that answers it."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"context": text(), "question": text(), "answer": text()})

    def _generate_examples(self, split, file):
        del split
        for number, (line, record) in enumerate(json_lines(file)):
            names = ("context", "question", "answer")
            yield number, {n: field(file, line, record, n, may_be_blank=False) for n in names}


class Pairs(Builder, skip_registration=True):
    """Prompts and the responses that continue them, as they are."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"prompt": text(), "response": text()})

    def _generate_examples(self, split, file):
        del split
        for number, (line, record) in enumerate(json_lines(file)):
            names = ("prompt", "response")
            yield number, {n: field(file, line, record, n, may_be_blank=False) for n in names}


class Chat(Builder, skip_registration=True):
    """Conversations, one record for each answer of the assistant with all that came before."""

    VERSION = tfds.core.Version("1.1.0")  # 1.1.0: line

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"messages": text(), "answer": text(), "line": text()})

    def _generate_examples(self, split, file):
        del split
        number = 0
        for line, record in json_lines(file):
            messages = conversation(file, line, record)
            # Without the directory: prepared data is shared by equal files wherever they are.
            place = f"{Path(file.name).name}:{line}"
            for end, message in enumerate(messages):
                if message["role"] == "assistant":
                    asked = json.dumps(messages[:end], ensure_ascii=False)
                    answer = message["content"]
                    yield number, {"messages": asked, "answer": answer, "line": place}
                    number += 1


class Own(Builder, skip_registration=True):
    """Records that `own_lines` or `ssjax.distill` wrote, of texts and lists of texts."""

    def _info(self):
        text = tfds.features.Text
        record = json.loads(self._files["train"].lines()[0])
        return self._dataset_info(
            {
                name: text() if isinstance(value, str) else tfds.features.Sequence(text())
                for name, value in record.items()
            }
        )

    def _generate_examples(self, split, file):
        del split
        for number, line in enumerate(file.lines()):
            yield number, json.loads(line)


@dataclass(frozen=True)
class Source:
    """Where the files of a task come from and what they are called."""

    builder: type[Builder]
    file_names: Mapping[str, str]
    url: str
    make_sample: Callable[[int], dict[str, SourceFile]] | None = None
    bring: Callable[[SourceFile], SourceFile] = lambda file: file  # into what the builder reads


def _sample_files(seed: int) -> dict[str, SourceFile]:
    """The generated sample in the form of the published files."""
    return {
        split: SourceFile(
            name=f"sample/{split}.jsonl",
            data="".join(f"{json.dumps(record)}\n" for record in records).encode(),
        )
        for split, records in sample.generate(sample.SPLIT_SIZES, seed).items()
    }


_JSON_LINES = {split: f"{split}.jsonl" for split in SPLITS}

_SOURCES = {
    DIALOGSUM.name: Source(
        builder=Dialogsum,
        file_names=_JSON_LINES,
        url="https://github.com/cylnlp/dialogsum (DialogSum_Data/dialogsum.{train,dev,test}.jsonl)",
        make_sample=_sample_files,
    ),
    E2E_NLG.name: Source(
        builder=E2eNlg,
        file_names={
            "train": "trainset.csv",
            "validation": "devset.csv",
            "test": "testset_w_refs.csv",
        },
        url="https://github.com/tuetschek/e2e-dataset",
    ),
    SQL_CONTEXT.name: Source(
        builder=SqlContext,
        file_names=_JSON_LINES,
        url="https://huggingface.co/datasets/b-mc2/sql-create-context without splits: cut its one "
        "array into these, an object a line with context, question and answer",
    ),
    PAIRS.name: Source(
        builder=Pairs,
        file_names=_JSON_LINES,
        url="your own data, an object a line with prompt and response",
    ),
    CHAT.name: Source(
        builder=Chat,
        file_names=_JSON_LINES,
        url="your own data, an object a line with messages (or ShareGPT's conversations)",
    ),
}


def source_of(task_name: str, path: str = "") -> Source:
    """What a task reads in a directory.

    Raises:
      UserError: a name that is not known, or a directory that was distilled for another task.
    """
    task = get_task(task_name)
    if distilled.check_task(path, task_name):
        return Source(Own, _JSON_LINES, "python -m ssjax.distill", bring=kept_lines)
    if not isinstance(task, OwnTask):
        return _SOURCES[task_name]
    columns = task.columns
    named = f" with {', '.join(columns.names)} and {columns.answer}" if columns.read is None else ""
    return Source(
        builder=Own,
        file_names=_JSON_LINES,
        url=f"your own data, an object a line{named}",
        bring=functools.partial(own_lines, columns=columns),
    )


def read_files(task_name: str, path: str, seed: int) -> dict[str, SourceFile]:
    """Reads what the splits are made from. Raises: UserError naming what is missing."""
    source = source_of(task_name, path)
    expected = f"the files {', '.join(source.file_names.values())}, from {source.url}"
    if not path:
        if source.make_sample is None:
            raise UserError(
                f"{task_name} has no generated sample: pass --config.data.path=DIR, "
                f"a directory with {expected}"
            )
        return source.make_sample(seed)
    if not os.path.isdir(path):
        raise UserError(f"{path} is not a directory: --config.data.path should hold {expected}")
    files = {}
    for split, name in source.file_names.items():
        file = Path(path) / name
        hint = f"--config.data.path should hold {expected}"
        files[split] = SourceFile(str(file), read_bytes(file, hint))
    # First, so that prepared data is keyed by what a function of the user makes.
    return {split: source.bring(file) for split, file in files.items()}
