"""Records in the forms in which people have them; the same ones in each."""

import dataclasses
import fnmatch
import gzip
import hashlib
import json
import math
import random

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from ssjax import config as config_lib
from ssjax.config import DataConfig
from ssjax.data import choice
from ssjax.data.builders import open_source
from ssjax.data.source_files import FORMATS, SourceFile
from ssjax.data.sources import find_source
from ssjax.data.splits import SPLITS, Reading
from ssjax.data.tasks import register_task
from ssjax.errors import UserError

PAIRS = [{"prompt": f"Say {i}.\u2028é", "response": f" {i}"} for i in range(2500)]
RENAMED = [
    {"question": row["prompt"], "answer": row["response"], "id": i} for i, row in enumerate(PAIRS)
]


def write(file, rows):
    """A file in the form that its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    if file.name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=700)
    elif file.name.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(rows)
        with (
            pyarrow.OSFile(str(file), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    else:
        file.write_bytes(gzip.compress(text) if file.name.endswith(".gz") else text)


def splits(path, task="pairs", **reading):
    source, parts = find_source(task, str(path), 0, Reading(**reading))
    return {split: list(source.read(parts[split])) for split in SPLITS}


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl",),
        ("train.jsonl.gz",),
        ("train.parquet",),
        (
            "train-00000-of-00003.parquet",
            "train-00001-of-00003.parquet",
            "train-00002-of-00003.parquet",
        ),
        ("train/a.jsonl.gz", "train/b.jsonl", "train/c.parquet"),
        ("train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow"),
    ],
    ids=lambda names: names[0],
)
def test_every_form_holds_the_same_records(tmp_path, names):
    size = math.ceil(len(PAIRS) / len(names))
    for i, name in enumerate(names):
        write(tmp_path / name, PAIRS[i * size : (i + 1) * size])
    for split in SPLITS[1:]:
        write(tmp_path / f"{split}.jsonl", PAIRS[:3])
    assert splits(tmp_path) == {"train": PAIRS, "validation": PAIRS[:3], "test": PAIRS[:3]}


def test_prepared_from_one_file_with_other_names(tmp_path):
    """All the way: a single Parquet file, its columns renamed, divided by shares."""
    write(tmp_path / "qa.parquet", RENAMED[:60])
    reading = Reading(("prompt=question", "response=answer"), 0.2, 0.1)
    place = "pairs", str(tmp_path / "qa.parquet"), str(tmp_path / "prepared"), 0
    found = [list(open_source(*place, split, reading)) for split in SPLITS]
    assert all(found)
    assert sorted(row["prompt"] for rows in found for row in rows) == sorted(
        row["prompt"] for row in PAIRS[:60]
    )
    assert len(list((tmp_path / "prepared").iterdir())) == 1
    open_source(*place, "train", Reading(reading.columns, 0.2, 0.1, split_seed=1))
    assert len(list((tmp_path / "prepared").iterdir())) == 2


def test_a_mixture_of_two_places(tmp_path):
    """Records, their digests, and that nothing held out is trained on."""
    write(tmp_path / "one.jsonl", PAIRS[:60])
    write(tmp_path / "more/a.parquet", PAIRS[40:90])
    data = DataConfig(
        task="pairs",
        path=str(tmp_path / "one.jsonl"),
        mixture=(f"{tmp_path}/more=2",),
        prepared_dir=str(tmp_path / "prepared"),
        validation_share=0.2,
        test_share=0.2,
    )
    config = config_lib.Config(data=data)
    train, validation, test = (choice.open_split(config, split) for split in SPLITS)
    assert train.parts == [(len(train.sources[0]), 1.0), (len(train.sources[1]), 2.0)]
    seen = [row["prompt"] for row in train]
    assert seen == [train[i]["prompt"] for i in range(-len(train), 0)]
    held_out = {row["prompt"] for source in (validation, test) for row in source}
    assert not held_out & {*seen}
    here = [row["prompt"] for row in PAIRS[:60] if by_hand(row, 0) >= 0.4]
    there = [row["prompt"] for row in PAIRS[40:90] if by_hand(row, 0) >= 0.4]
    assert seen == here + there
    digests = choice.data_digests(config)
    assert digests.keys() == {*SPLITS, "mixture 1"}
    heavier = dataclasses.replace(data, mixture=(f"{tmp_path}/more=3",))
    other = choice.data_digests(dataclasses.replace(config, data=heavier))
    assert {name for name in digests if digests[name] != other[name]} == {"mixture 1"}


def by_hand(row, seed):
    """Where a record lies between 0 and 1."""
    digest = hashlib.blake2b(f"{seed}\n{row['prompt']}".encode(), digest_size=8).hexdigest()
    return int(digest, 16) / 16**16


def test_shares_go_by_what_is_asked(tmp_path):
    file = tmp_path / "all.jsonl"
    write(file, PAIRS)
    found = splits(file, validation_share=0.1, test_share=0.05, split_seed=3)
    assert found["test"] == [row for row in PAIRS if by_hand(row, 3) < 0.05]
    assert found["validation"] == [row for row in PAIRS if 0.05 <= by_hand(row, 3) < 0.15]
    assert sum(map(len, found.values())) == len(PAIRS)
    # Six standard deviations of a fair draw.
    assert abs(len(found["validation"]) - 250) < 6 * math.sqrt(250 * 0.9)
    # Another order, in other files, beside more records; a second answer goes where the first is.
    again = [{"prompt": row["prompt"], "response": " again"} for row in PAIRS[:500]]
    more = [{"prompt": f"More {i}", "response": " x"} for i in range(100)]
    rows = [*PAIRS[::-1], *again, *more]
    for i in range(3):
        write(tmp_path / f"shards/part{i}.jsonl.gz", rows[i::3])
    sharded = splits(tmp_path / "shards", validation_share=0.1, test_share=0.05, split_seed=3)
    asked = {split: {row["prompt"] for row in rows} for split, rows in sharded.items()}
    for split, rows in found.items():
        assert {row["prompt"] for row in rows} <= asked[split]
    assert not asked["train"] & (asked["validation"] | asked["test"])
    other = splits(file, validation_share=0.1, test_share=0.05, split_seed=4)
    assert other["test"] != found["test"]
    # A larger validation split moves nothing in or out of the test split.
    assert (
        splits(file, validation_share=0.3, test_share=0.05, split_seed=3)["test"] == found["test"]
    )


def test_a_share_fills_in_for_one_missing_split(tmp_path):
    write(tmp_path / "train.jsonl", PAIRS)
    write(tmp_path / "test.jsonl", PAIRS[:5])
    found = splits(tmp_path, validation_share=0.1)
    assert found["test"] == PAIRS[:5]
    assert len(found["train"]) + len(found["validation"]) == len(PAIRS)
    assert found["validation"] == [row for row in PAIRS if by_hand(row, 0) < 0.1]


def test_a_conversation_falls_to_one_split_with_all_its_answers(tmp_path):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
    chats = [{"messages": [{"role": "user", "content": f"Hi {i}"}, *turns[1:]]} for i in range(200)]
    write(tmp_path / "chats.parquet", chats)
    found = splits(tmp_path / "chats.parquet", "chat", validation_share=0.2, test_share=0.2)
    lines = [{row["line"] for row in rows} for rows in found.values()]
    assert sum(map(len, lines)) == len(set.union(*lines)) == 200
    assert all(
        len(rows) == 2 * len(of_split) for rows, of_split in zip(found.values(), lines, strict=True)
    )
    assert found["train"][0]["line"].startswith("chats.parquet, row ")


def test_a_task_of_ones_own_reads_tables_and_renamed_columns(tmp_path):
    register_task("shop", prompt="{product}:", answer="answer")
    rows = [
        {"name": "kettle", "answers": ["quiet", "mute"]},
        {"name": "lamp", "answers": ["on sale"]},
    ]
    for split in SPLITS:
        write(tmp_path / f"{split}.parquet", rows)
    found = splits(tmp_path, "shop", columns=("product=name", "answer=answers"))
    assert found["train"][0] == {"product": "kettle", "answer": ["quiet", "mute"]}


def test_where_data_lies_and_how_it_is_packed_do_not_make_other_data(tmp_path):
    """Digests are compared when a run continues."""
    for name in ("a", "b"):
        for split in SPLITS:
            write(tmp_path / name / f"{split}.jsonl", PAIRS[:3])

    def digests(name, **reading):
        source, parts = find_source("pairs", str(tmp_path / name), 0, Reading(**reading))
        return {split: source.digest(part) for split, part in parts.items()}

    content = (tmp_path / "a/train.jsonl").read_bytes()
    assert digests("a") == digests("b")
    assert digests("a")["train"] == hashlib.sha256(content).hexdigest()
    assert digests("a", columns=("prompt=response",)) != digests("a")
    write(tmp_path / "b/train.jsonl", PAIRS[1:4])  # of the same length, within the same second
    assert digests("a")["train"] != digests("b")["train"]


DAMAGE = [
    ("train.jsonl.gz", lambda data: data[:-9], r"train\.jsonl\.gz:\d+: not gzip, or cut short \("),
    ("train.jsonl.gz", lambda data: b"{}\n", r"train\.jsonl\.gz:1: not gzip, or cut short"),
    (
        "train.jsonl.gz",
        lambda data: gzip.compress(b'{"prompt": "a", "response": "b"}\n\n{"prompt"\n'),
        r"train\.jsonl\.gz:3: not JSON",
    ),
    (
        "train.jsonl.gz",
        lambda data: gzip.compress(b"\n\xff\n"),
        r"\.gz, line 2: not UTF-8; convert",
    ),
    ("train.parquet", lambda data: data[:-5], r"train\.parquet, row 1: not a table, or damaged \("),
    (
        "train.parquet",
        lambda data: data[: len(data) // 2 - 400] + bytes(800) + data[len(data) // 2 + 400 :],
        r"train\.parquet, row \d+: not a table, or damaged \(",
    ),
    (
        "train.arrow",
        lambda data: data[: len(data) // 2],
        r"train\.arrow, row 1: not a table, or dam",
    ),
    ("train.parquet", lambda data: b"", r"train\.parquet, row 1: not a table"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_a_damaged_file_is_named_with_the_place(tmp_path, name, damage, message):
    write(tmp_path / name, PAIRS)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    for split in SPLITS[1:]:
        write(tmp_path / f"{split}.jsonl", PAIRS[:3])
    with pytest.raises(UserError, match=message) as error:
        splits(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("end", FORMATS)
def test_damage_anywhere_is_one_line_or_nothing(tmp_path, end):
    """Bytes that are changed, inserted in place of others, lost, and files that are cut short."""
    file = tmp_path / f"all{end}"
    write(file, PAIRS[:100])
    content = file.read_bytes()
    refused = 0
    for seed in range(40):
        draw, data = random.Random(seed), bytearray(content)
        place = draw.randrange(len(data))
        if seed % 4 == 0:
            data = data[:place]
        elif seed % 4 == 1:
            data[place] ^= draw.randrange(1, 256)
        elif seed % 4 == 2:
            data[place : place + 50] = draw.randbytes(50)
        else:
            del data[place : place + draw.randrange(1, 40)]
        file.write_bytes(data)
        try:
            list(SourceFile(str(file)).records())
        except UserError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("rows", "reading", "message"),
    [
        (
            [{"prompt": "a", "response": "b"}, {"prompt": "c"}],
            {},
            'row 2: field "response" should be',
        ),
        ([{"prompt": "a", "response": 3}], {}, 'row 1: field "response" should be text, found int'),
        ([{"prompt": "a", "response": " "}], {}, "is empty; fill it in or take the row out"),
        (
            [{"a": "b"}],
            {"columns": ("prompt=x",)},
            'row 1: column "x" of data.columns is missing; the row has a',
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, rows, reading, message):
    write(tmp_path / "all.parquet", rows)
    with pytest.raises(UserError, match=f"all.parquet, {message}|{message}"):
        splits(tmp_path / "all.parquet", validation_share=0.1, test_share=0.1, **reading)


@pytest.mark.parametrize(
    ("names", "reading", "message"),
    [
        (
            ("train.jsonl", "test.jsonl"),
            {},
            r"no validation split: .*or give --config.data.validation_share",
        ),
        (("validation.jsonl", "test.jsonl"), {}, "has no train split: "),
        ((), {"validation_share": 0.1, "test_share": 0.1}, "has no train split"),
        (("a.jsonl",), {}, "has no validation split"),
        (
            ("train.jsonl", "test.jsonl"),
            {"validation_share": 0.1, "test_share": 0.1},
            r"test\.jsonl is there, and data.test_share is 0.1; give 0",
        ),
        (
            ("train.jsonl", "train/x.parquet"),
            {},
            r"the train split twice, train\.jsonl and train/x",
        ),
        (
            ("train.jsonl", "train.parquet"),
            {},
            r"twice, train\.jsonl and train\.parquet; leave one",
        ),
        (
            ("train-00000-of-00004.jsonl", "train-00003-of-00004.jsonl"),
            {},
            r"lacks 2 of 4 shards train-\*\.jsonl, the first number 1",
        ),
        (
            ("a-0-of-2.jsonl", "b-0-of-2.jsonl", "a-1-of-2.jsonl"),
            {"validation_share": 0.1, "test_share": 0.1},
            r"lacks 1 of 2 shards b-\*\.jsonl",
        ),
        (
            ("all.jsonl",),
            {"validation_share": 1e-9, "test_share": 0.5},
            "no record of .* falls to the validation split; give larger shares",
        ),
    ],
)
def test_splits_that_cannot_be_made(tmp_path, names, reading, message):
    for name in names:
        write(tmp_path / name, PAIRS[:20])
    with pytest.raises(UserError, match=message):
        splits(tmp_path, **reading)


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """The client is asked for the files of the folder alone; its cache stands in for the hub."""
    snapshot = tmp_path / "snapshots" / "0123abc"
    for split in SPLITS:
        write(snapshot / f"data/{split}-00000-of-00001.parquet", PAIRS[:4])
    asked = []

    def download(repository, *, repo_type, revision, allow_patterns):
        asked.append((repository, repo_type, revision))
        if repository == "a/none":
            raise OSError("401 Client Error\nmore")
        files = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*.parquet")]
        matches = [any(fnmatch.fnmatch(name, each) for each in allow_patterns) for name in files]
        assert all(matches) == repository.startswith("a/data")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for _ in range(2):
        assert splits("hub:a/data.set/data@refs/convert/parquet")["train"] == PAIRS[:4]
    assert asked == [("a/data.set", "dataset", "refs/convert/parquet")]
    for name, message in (
        ("hub:a/none", r"cannot fetch hub:a/none .*: 401 Client Error; check the name"),
        ("hub:a/other/files", "no files of records there .*; name the folder"),
        ("hub:a", "is no data set of the hub; write hub:OWNER/NAME"),
        ("hub:a/../b", "is no data set of the hub"),
    ):
        with pytest.raises(UserError, match=message):
            splits(name)


def test_other_files_are_refused(tmp_path):
    write(tmp_path / "all.jsonl", PAIRS)
    (tmp_path / "all.jsonl").rename(tmp_path / "all.json")
    with pytest.raises(UserError, match=r"all\.json .*no file of records by its name \(\.jsonl, "):
        splits(tmp_path / "all.json", validation_share=0.1, test_share=0.1)
    with pytest.raises(UserError, match="are not for e2e_nlg, whose published files are read"):
        splits(tmp_path, "e2e_nlg", validation_share=0.1)
    with pytest.raises(UserError, match="data.path is empty"):
        splits("", "dialogsum", validation_share=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ("prompt",)}, r"data.columns must hold NAME=COLUMN"),
        ({"columns": ("prompt=",)}, r"data.columns must hold NAME=COLUMN"),
        ({"columns": ("a=b", "a=c")}, "a name has one column"),
        ({"mixture": ("more",)}, "data.mixture must hold DIR=WEIGHT, each weight above 0"),
        ({"mixture": ("more=-1",)}, "data.mixture must hold DIR=WEIGHT, each weight above 0"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        (
            {"validation_share": 1.0},
            "data.validation_share must be a number of at least 0 and below 1",
        ),
    ],
)
def test_settings_that_cannot_work(change, message):
    values = config_lib.to_dict(config_lib.Config(data=DataConfig(**change)))
    with pytest.raises(UserError, match=message):
        config_lib.from_dict(values)


@pytest.mark.parametrize(
    ("names", "reading"),
    [
        (("train.jsonl", "validation.jsonl"), {}),
        (("all.jsonl",), {"validation_share": 0.2}),
    ],
)
def test_a_test_split_may_be_missing(tmp_path, names, reading):
    """Training has what it needs; who asks for the split is told."""
    for name in names:
        write(tmp_path / name, PAIRS[:20])
    data = DataConfig(task="pairs", path=str(tmp_path), prepared_dir=str(tmp_path / "p"), **reading)
    config = dataclasses.replace(config_lib.Config(), data=data)
    assert choice.split_names(config) == ("train", "validation")
    assert all(len(choice.open_split(config, split)) for split in ("train", "validation"))
    with pytest.raises(UserError, match="has no test split; give its file, --config.data.test_s"):
        choice.open_split(config, "test")
