"""What `python -m ssjax.show` says training sees, against the texts themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_tokenizers
import verb_server

from ssjax import config as config_lib
from ssjax.config import DataConfig
from ssjax.data import builders, pipeline, preview
from ssjax.data.choice import choose_tokenizer
from ssjax.data.preview import Shown
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.errors import UserError


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Prompts and responses of the words that the tokenizer knows, and a tokenizer."""
    directory = tmp_path_factory.mktemp("pairs")
    for split in builders.SPLITS:
        lines = [{"prompt": f"Anna wants {n}", "response": f" Bob wants {n}."} for n in range(6)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (directory / f"{split}.jsonl").write_text(text)
    (directory / "tokenizer").mkdir()
    tokenizer_from_files(small_tokenizers.sentencepiece(), "t").save(directory / "tokenizer")
    return directory


def command(pairs, *arguments):
    finished = verb_server.server().call(
        "show",
        [
            "--config=experiments/dialogsum.py:smoke",
            "--config.data.task=pairs",
            f"--config.data.path={pairs}",
            f"--config.data.tokenizer={pairs / 'tokenizer'}",
            f"--config.data.prepared_dir={pairs / 'prepared'}",
            f"--config.workdir={pairs / 'run'}",
            *arguments,
        ],
    )
    assert not (pairs / "run").exists()  # nothing is written there
    return finished


def config_of(pairs, **changes):
    c = config_lib.default_config()
    c.workdir = str(pairs / "run")
    c.data.task, c.data.path = "pairs", str(pairs)
    c.data.tokenizer, c.data.prepared_dir = str(pairs / "tokenizer"), str(pairs / "prepared")
    c.data.batch_size = 2
    for name, value in changes.items():
        c.data[name] = value
    return config_lib.from_config_dict(c)


def test_the_command_shows_text_ids_and_mask(pairs, tmp_path):
    file = tmp_path / "shown.json"
    done = command(pairs, "--split=test", "--num_records=2", f"--json={file}")
    assert done.returncode == 0, done.stderr
    records = json.loads(file.read_text())
    tokenizer = tokenizer_from_files(small_tokenizers.sentencepiece(), "t")
    assert len(records) == 2 and done.stdout.count("pairs test, record") == 2
    for number, record in enumerate(records):
        prompt = [*tokenizer.prefix_ids, *tokenizer.encode(f"Anna wants {number}")]
        target = [*tokenizer.encode_continuation(f" Bob wants {number}."), tokenizer.eos_id]
        assert record["token_ids"] == prompt + target
        assert record["loss_mask"] == [0] * len(prompt) + [1] * len(target)
        assert record["prompt"].endswith(f"Anna wants {number}")
        assert record["target"] == f" Bob wants {number}.<eos>"
    cells = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    ids = [int(token) for row in cells for token in row[2].split()]
    assert ids == records[0]["token_ids"] + records[1]["token_ids"]
    marks = [mark for row in cells for mark in row[3].split()]
    assert marks == [".x"[flag] for record in records for flag in record["loss_mask"]]


def test_a_cut_target_is_shown_and_then_an_error(pairs):
    done = command(pairs, "--num_records=1", "--config.data.max_target_length=2")
    assert done.returncode == 2
    assert "pairs train, record 1" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "target has no end of sequence" in line and "data.max_target_length=2" in line


def test_bad_flags_are_one_line(pairs):
    for arguments, message in (
        (["--config.data.path=/nowhere"], "/nowhere is not a directory"),
        (["--num_records=0"], "num_records"),
        (["--split=dev"], "split"),
    ):
        done = command(pairs, *arguments)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("packing", [False, True])
def test_train_rows_are_those_of_the_batches(pairs, packing):
    """Every sequence of the first batches, in their order, whatever shares a row."""
    config = config_of(pairs, packing=packing)
    tokenizer = choose_tokenizer(Path(config.workdir), config, None, print)
    data = config.data
    source = builders.open_source("pairs", data.path, data.prepared_dir, config.seed, "train")
    layout = pipeline.BatchLayout(
        2, data.max_prompt_length, data.max_target_length, packing=packing
    )
    batches = pipeline.train_batches(source, pipeline_task(), tokenizer, layout, seed=config.seed)
    rows = preview.sequences(preview.batches(config, tokenizer, "train", print))
    expected, learned = [], 0
    for batch in (batches[0], batches[1]):
        filled = batch["segments"] > 0
        expected += batch["tokens"][filled].tolist()
        learned += int(batch["is_target"].sum())
    found, mask = [], []
    while len(found) < len(expected):
        sequence = next(rows)
        found += sequence.token_ids
        mask += sequence.loss_mask
        preview.check(sequence, tokenizer, data, "train")
    assert found == expected and sum(mask) == learned


def pipeline_task():
    from ssjax.data.tasks import PAIRS

    return PAIRS


def test_padding_belongs_to_no_sequence():
    batch = {
        "tokens": np.array([[2, 5, 3, 0, 0], [2, 6, 3, 2, 3]]),
        "segments": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 2, 2]]),
        "is_target": np.array([[0, 1, 1, 0, 0], [0, 0, 1, 0, 1]], bool),
    }
    assert list(preview.sequences([batch])) == [
        Shown(0, (2, 5, 3), (False, True, True)),
        Shown(1, (2, 6, 3), (False, False, True)),
        Shown(1, (2, 3), (False, True)),
    ]


@pytest.mark.parametrize(
    ("mask", "ids", "message"),
    [
        ("xxx", (4, 5, "eos"), "the loss mask is all ones"),
        ("...", (4, 5, "eos"), "the loss mask is all zeros"),
        (".xx", (4, 5, 6), "no end of sequence, so the model would not learn to stop"),
        (".xxx", (4, 5, 6, 7), "cut at data.max_target_length=3; raise that"),
        (".x.", (4, "eos", 6), None),
        ("..x", (4, 5, "eos"), None),
    ],
)
def test_what_is_wrong_with_a_sequence(mask, ids, message):
    tokenizer = tokenizer_from_files(small_tokenizers.sentencepiece(), "t")
    ids = tuple(tokenizer.eos_id if token == "eos" else token for token in ids)
    sequence = Shown(7, ids, tuple(mark == "x" for mark in mask))
    data = DataConfig(task="pairs", max_target_length=3)
    if message is None:
        preview.check(sequence, tokenizer, data, "train")
    else:
        with pytest.raises(UserError, match=message) as caught:
            preview.check(sequence, tokenizer, data, "train")
        assert str(caught.value).startswith("pairs train, row 7: ")
        assert "\n" not in str(caught.value)


def test_special_tokens_have_names():
    tokenizer = tokenizer_from_files(small_tokenizers.sentencepiece(), "t")
    ids = [*tokenizer.prefix_ids, *tokenizer.encode("Anna"), tokenizer.eos_id]
    text = preview.text_of(ids, tokenizer)
    assert text.startswith("<bos>") and text.endswith("Anna<eos>")
