"""Lengths of records: by one process and by several, kept, and not believed without a look."""

import dataclasses
import json

import numpy as np
import pytest
import small_tokenizers

from ssjax.config import Config, DataConfig
from ssjax.data import choice, lengths, pipeline, preview
from ssjax.data.builders import open_source
from ssjax.data.lengths import lengths_of
from ssjax.data.records import Chosen
from ssjax.data.tasks import get_task, register_task
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.errors import UserError

ROWS = [{"q": "the of " * (i % 7) + "x", "a": "and " * (i % 5 + 1)} for i in range(50)]


@pytest.fixture
def task():
    register_task("short", prompt="{q}?", answer="a")
    return get_task("short")


@pytest.fixture
def source(tmp_path, task):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        text = "".join(f"{json.dumps(row)}\n" for row in ROWS)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text)
    return open_source("short", str(tmp_path / "data"), str(tmp_path / "prepared"), 0, "train")


def tokenizer_of(size=300):
    return train_tokenizer(small_tokenizers.TEXTS, size, symbols=())


def counted(task, tokenizer):
    """By hand."""
    prompts = [len([*tokenizer.prefix_ids, *tokenizer.encode(f"{row['q']}?")]) for row in ROWS]
    targets = [len(tokenizer.encode_continuation(f" {row['a']}")) + 1 for row in ROWS]
    return prompts, targets


def same(found, expected):
    return found.prompts.tolist() == expected[0] and found.targets.tolist() == expected[1]


def kept_files(tmp_path):
    return sorted((tmp_path / "prepared").glob("*/lengths/*.npz"))


def test_several_processes_find_what_one_does(tmp_path, source, task):
    """Tasks of the user and the tokenizer reach processes that were started as programs."""
    tokenizer = tokenizer_of()
    expected = counted(task, tokenizer)
    assert same(lengths_of(source, task, tokenizer, num_processes=2), expected)
    [file] = kept_files(tmp_path)
    file.unlink()
    assert same(lengths_of(source, task, tokenizer), expected)
    assert same(lengths_of(list(source), task, tokenizer), expected)
    numbers = np.array([40, 3, 3])
    few = lengths_of(Chosen(source, numbers), task, tokenizer)
    assert few.prompts.tolist() == [expected[0][number] for number in numbers]


def test_kept_lengths_are_read_and_those_of_others_are_not(tmp_path, source, task, monkeypatch):
    tokenizer = tokenizer_of()
    first = lengths_of(source, task, tokenizer)
    measured = []
    measure = lengths._measure

    def counting(source, task, tokenizer, numbers):
        measured.append(len(numbers))
        return measure(source, task, tokenizer, numbers)

    monkeypatch.setattr(lengths, "_measure", counting)
    assert same(
        lengths_of(source, task, tokenizer), (first.prompts.tolist(), first.targets.tolist())
    )
    assert sum(measured) < len(source)
    # Another tokenizer, another task of the same columns, another split.
    register_task("long", prompt="{q} and the?", answer="a")
    other = open_source("short", str(tmp_path / "data"), str(tmp_path / "prepared"), 0, "test")
    for arguments in (
        (source, task, tokenizer_of(320)),
        (source, get_task("long"), tokenizer),
        (other, task, tokenizer),
    ):
        measured.clear()
        lengths_of(*arguments)
        assert max(measured) == len(source)
    assert len(kept_files(tmp_path)) == 4


def save(file, size, length):
    same = np.full(size, length, np.int32)
    np.savez(file, prompts=same, targets=same, extends=np.zeros(size, bool))


@pytest.mark.parametrize("damage", ["cut short", "a bit", "of other data", "another task"])
def test_what_is_kept_is_not_believed_blindly(tmp_path, source, task, damage):
    tokenizer = tokenizer_of()
    lengths_of(source, task, tokenizer)
    [file] = kept_files(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "cut short":
        file.write_bytes(content[:200])
    elif damage == "a bit":
        content[300] ^= 1
        file.write_bytes(content)
    elif damage == "of other data":
        save(file, 3, 1)
    else:
        save(file, 50, 7)
    assert same(lengths_of(source, task, tokenizer), counted(task, tokenizer))


def test_a_record_that_cannot_be_written_is_named_by_every_process(tmp_path):
    """A tokenizer without a chat template."""
    chat = {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant")]}
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{json.dumps(chat)}\n" * 2)
    source = open_source("chat", str(tmp_path), str(tmp_path / "prepared"), 0, "train")
    with pytest.raises(UserError, match="has no chat template"):
        lengths_of(source, get_task("chat"), tokenizer_of(), num_processes=2)


def test_cutting_is_what_examples_are_cut_to(source, task):
    tokenizer, limits = tokenizer_of(), (14, 6)
    found = lengths_of(source, task, tokenizer)
    examples = [pipeline.encode_example(record, task, tokenizer, *limits) for record in source]
    whole, targets = found.cut(*limits)
    assert whole.tolist() == [len(prompt) + len(target) for prompt, target in examples]
    assert targets.tolist() == [len(target) for _, target in examples]
    uncut = [pipeline.encode_example(record, task, tokenizer, 999, 999) for record in source]
    fits = [example == longer for example, longer in zip(examples, uncut, strict=True)]
    assert found.fit(*limits).tolist() == fits and 0 < sum(fits) < len(fits)


@pytest.mark.parametrize("limits", [(99, 99), (20, 9), (12, 30)])
def test_runs_of_records_against_brute_force(limits):
    draw = np.random.default_rng(0)
    found = lengths.Lengths(
        draw.integers(1, 25, 200), draw.integers(1, 9, 200), draw.random(200) < 0.7
    )
    found.extends[0] = False
    runs = []
    for number in range(200):
        fits = found.prompts[number] <= limits[0] and found.targets[number] <= limits[1]
        before = runs[-1] if runs else []
        whole = sum(found.targets[i] for i in before) + found.targets[number] <= limits[1]
        cut = number and found.prompts[number - 1] > limits[0]
        cut = cut or (number and found.targets[number - 1] > limits[1])
        if before and found.extends[number] and fits and whole and not cut:
            before.append(number)
        else:
            runs.append([number])
    assert found.joined(*limits).tolist() == [run[0] for run in runs]
    assert max(map(len, runs)) > 2


def test_records_that_are_too_long_are_cut_or_dropped(tmp_path, source, task):
    """With what is said, what is trained on and what validation losses are taken of."""
    del source  # writes the files
    tokenizer = tokenizer_of()
    prompts, targets = counted(task, tokenizer)
    short = [prompt <= 14 and target <= 6 for prompt, target in zip(prompts, targets, strict=True)]
    data = DataConfig(
        task="short",
        path=str(tmp_path / "data"),
        prepared_dir=str(tmp_path / "prepared"),
        max_prompt_length=14,
        max_target_length=6,
        batch_size=4,
    )

    def seen(too_long, split):
        changed = dataclasses.replace(data, too_long=too_long)
        config, said = dataclasses.replace(Config(), data=changed), []
        batches = preview.batches(config, tokenizer, split, said.append)
        num_batches = 2 * len(ROWS) if split == "train" else len(batches)
        rows = preview.sequences(batches[i] for i in range(num_batches))
        return said[0], [tuple(row.token_ids) for row in rows]

    for split in ("train", "validation"):
        line, rows = seen("cut", split)
        assert len(rows) >= len(ROWS) and "dropped" not in line and " 0 cut" not in line
        line, rows = seen("drop", split)
        assert f"{sum(short)} records;" in line and line.count(" 0 cut") == 2
        assert line.endswith(f"; {len(ROWS) - sum(short)} too long, dropped")
        expected = {
            (*task.prompt_ids(record, tokenizer), *task.target_ids(record, tokenizer))
            for record, fits in zip(({**row, "a": [row["a"]]} for row in ROWS), short, strict=True)
            if fits
        }
        assert {*rows} == expected
    config = dataclasses.replace(
        Config(), data=dataclasses.replace(data, too_long="drop", max_target_length=1)
    )
    with pytest.raises(UserError, match="all 50 records of train are longer than .*too_long=cut"):
        choice.training_records(config, tokenizer, "train")
