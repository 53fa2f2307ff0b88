import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssjax.data.builders import SPLITS, open_source, prepare
from ssjax.errors import UserError

ROOT = Path(__file__).parents[2]


def dialogue(number, **changes):
    record = {
        "fname": f"r{number}",
        "dialogue": f"#Person1#: Hi {number}.\n#Person2#: Ho.\u2028é",
        "summary": f"They say {number}.",
        "topic": "greeting",
    }
    return record | changes


def write_dialogsum(directory, *, train=(), test=()):
    """A tiny DialogSum; train and test are the lines of these files, as text or records."""
    three = dialogue(9, **{f"summary{i}": f"Summary {i}." for i in (1, 2, 3)}, topic1="first")
    del three["summary"], three["topic"]
    lines = {
        "train": train or [dialogue(i) for i in range(5)],
        "validation": [dialogue(8)],
        "test": test or [three],
    }
    directory.mkdir(exist_ok=True)
    for split, rows in lines.items():
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (directory / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(directory)


def write_e2e(directory, *, train="mr,ref\nname[A],A one.\nname[A],A two.\nname[B],B.\n"):
    directory.mkdir(exist_ok=True)
    (directory / "trainset.csv").write_bytes(train if isinstance(train, bytes) else train.encode())
    (directory / "devset.csv").write_text(
        '"mr","ref"\n"name[C]","C one."\n"name[D]","D"\n"name[C]","C\n  two  ""x""."\n'
    )
    (directory / "testset_w_refs.csv").write_text("mr,ref\nname[E],E\nname[E],E\n")
    return str(directory)


def published(name):
    """A directory with the files of a task, or a skip."""
    data = os.environ.get("SSJAX_DATA", ROOT.parent / "shared" / "data")
    if not (Path(data) / name).is_dir():
        pytest.skip(f"no {name} files: set SSJAX_DATA to a directory that holds {name}/")
    return Path(data) / name


def contents(task, path, prepared, split):
    return list(open_source(task, path, str(prepared), 0, split))


def test_dialogsum_keeps_order_and_text(tmp_path):
    path = write_dialogsum(tmp_path / "files")
    train = contents("dialogsum", path, tmp_path / "prepared", "train")
    assert [record["fname"] for record in train] == ["r0", "r1", "r2", "r3", "r4"]
    assert train[3] == {
        "fname": "r3",
        "dialogue": "#Person1#: Hi 3.\n#Person2#: Ho.\u2028é",
        "topic": "greeting",
        "summaries": ("They say 3.",),
    }
    (test,) = contents("dialogsum", path, tmp_path / "prepared", "test")
    assert test["summaries"] == ("Summary 1.", "Summary 2.", "Summary 3.")
    assert test["topic"] == "first"


def test_e2e_groups_references_of_held_out_splits(tmp_path):
    path = write_e2e(tmp_path / "files")
    assert contents("e2e_nlg", path, tmp_path / "prepared", "train") == [
        {"mr": "name[A]", "references": ("A one.",)},
        {"mr": "name[A]", "references": ("A two.",)},
        {"mr": "name[B]", "references": ("B.",)},
    ]
    assert contents("e2e_nlg", path, tmp_path / "prepared", "validation") == [
        {"mr": "name[C]", "references": ("C one.", 'C two "x".')},
        {"mr": "name[D]", "references": ("D",)},
    ]
    assert contents("e2e_nlg", path, tmp_path / "prepared", "test") == [
        {"mr": "name[E]", "references": ("E", "E")}
    ]


def test_a_source_is_a_sequence(tmp_path):
    source = open_source("dialogsum", write_dialogsum(tmp_path), str(tmp_path / "p"), 0, "train")
    assert len(source) == 5
    assert source[-1] == source[4]
    for index in (5, -6):
        with pytest.raises(IndexError, match="of 5"):
            source[index]


def test_the_sample_needs_no_files(tmp_path, capfd):
    sources = [open_source("dialogsum", "", str(tmp_path), 0, split) for split in SPLITS]
    assert [len(source) for source in sources] == [2400, 200, 200]
    assert sources[2][0]["fname"] == "test_0"
    assert len(sources[0][0]["summaries"]) == 1
    assert capfd.readouterr() == ("", "")
    assert prepare("dialogsum", "", str(tmp_path), 0) != prepare("dialogsum", "", str(tmp_path), 1)


def test_prepared_data_is_reused_until_a_file_changes(tmp_path):
    path = write_dialogsum(tmp_path / "files")
    first = prepare("dialogsum", path, str(tmp_path / "prepared"), 0)
    written = next(first.glob("*train*")).stat().st_mtime_ns
    assert prepare("dialogsum", path, str(tmp_path / "prepared"), 1) == first
    assert next(first.glob("*train*")).stat().st_mtime_ns == written
    # The same number of bytes, so that only reading them shows the difference.
    write_dialogsum(tmp_path / "files", train=[dialogue(i) for i in (4, 3, 2, 1, 0)])
    changed = contents("dialogsum", path, tmp_path / "prepared", "train")
    assert [record["fname"] for record in changed] == ["r4", "r3", "r2", "r1", "r0"]


def test_nothing_is_left_by_a_failure_midway(tmp_path):
    """train is written before the last line of test is found to be bad."""
    path = write_dialogsum(tmp_path / "files", test=[dialogue(1), "{"])
    with pytest.raises(UserError, match=r"test\.jsonl:2: "):
        prepare("dialogsum", path, str(tmp_path / "prepared"), 0)
    assert list((tmp_path / "prepared").iterdir()) == []
    write_dialogsum(tmp_path / "files", test=[dialogue(1)])
    assert len(contents("dialogsum", path, tmp_path / "prepared", "test")) == 1


PREPARE = (
    "import sys; from ssjax.data.builders import prepare; prepare('dialogsum', *sys.argv[1:], 0)"
)


def test_a_kill_before_the_rename_is_not_trusted(tmp_path):
    path = write_dialogsum(tmp_path / "files")
    kill = "import os, signal; os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
    command = [sys.executable, "-c", kill + PREPARE, path, str(tmp_path / "prepared")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    (left,) = (tmp_path / "prepared").iterdir()
    assert left.name.startswith(".incomplete-")
    assert len(contents("dialogsum", path, tmp_path / "prepared", "train")) == 5


@pytest.mark.parametrize("damage", ["cut short", "lost", "not listed"])
def test_damaged_prepared_data_is_prepared_anew(tmp_path, damage):
    path, prepared = write_dialogsum(tmp_path), tmp_path / "prepared"
    expected = contents("dialogsum", path, prepared, "train")
    file = max(prepared.rglob("*train*"), key=lambda file: file.stat().st_size)
    if damage == "cut short":
        os.truncate(file, 100)
    else:
        (file if damage == "lost" else next(prepared.glob("*/manifest.json"))).unlink()
    assert contents("dialogsum", path, prepared, "train") == expected
    assert len(list(prepared.iterdir())) == 1


def test_two_processes_prepare_at_once(tmp_path):
    path = write_dialogsum(tmp_path / "files", train=[dialogue(i) for i in range(300)])
    command = [sys.executable, "-c", PREPARE, path, str(tmp_path / "prepared")]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "prepared").iterdir())) == 1
    assert len(contents("dialogsum", path, tmp_path / "prepared", "train")) == 300


def test_the_loser_of_a_race_takes_what_the_winner_wrote(tmp_path, monkeypatch):
    """The other process finishes between our look and our rename."""
    path = write_dialogsum(tmp_path / "files")
    rename, prepared = os.rename, str(tmp_path / "prepared")

    def winner_first(temporary, final):
        monkeypatch.setattr(os, "rename", rename)
        prepare("dialogsum", path, prepared, 0)
        rename(temporary, final)

    monkeypatch.setattr(os, "rename", winner_first)
    prepare("dialogsum", path, prepared, 0)
    assert len(list((tmp_path / "prepared").iterdir())) == 1
    assert len(contents("dialogsum", path, prepared, "train")) == 5


def without(name):
    record = dialogue(2)
    del record[name]
    return record


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"fname": "x", ', "not JSON (Expecting property name"),
        ("3", "not a JSON object; write one object a line"),
        ("[1]", "expected a JSON object, found list"),
        ('{"fname":' * 100_000, "JSON nested too deeply; write one object a line"),
        (f'{{"fname": {"9" * 5000}}}', "not JSON (Exceeds the limit"),
        (without("summary"), 'field "summary" is missing; the line has fname, dialogue, topic'),
        (without("dialogue"), 'field "dialogue" is missing'),
        (without("fname"), 'field "fname" is missing'),
        (without("topic"), 'field "topic" is missing'),
        (dialogue(2, summary=3), 'field "summary" should be text, found int'),
        (dialogue(2, topic=None), 'field "topic" should be text, found NoneType'),
        (dialogue(2, dialogue=" \n"), 'field "dialogue" is empty'),
        (dialogue(2, summary=""), 'field "summary" is empty'),
        (dialogue(2, summary="\ud83d"), 'field "summary" holds half of a surrogate pair'),
    ],
)
def test_malformed_dialogsum_lines(tmp_path, line, message):
    path = write_dialogsum(tmp_path / "files", train=[dialogue(0), "", dialogue(1), line])
    with pytest.raises(UserError) as error:
        prepare("dialogsum", path, str(tmp_path / "prepared"), 0)
    assert str(error.value).startswith(f"{path}/train.jsonl:4: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("meaning,text\na,b\n", "1: expected the header mr,ref, found 'meaning,text'"),
        ("", "1: expected the header mr,ref, found ''"),
        ("mr,ref\n", "2: no rows follow the header"),
        ("mr,ref\na,b\n\na\n", "4: expected 2 columns (mr, ref), found 1"),
        ("mr,ref\na,b,c\n", "2: expected 2 columns (mr, ref), found 3"),
        ('mr,ref\na,"b\nb"\n,c\n', '4: column "mr" is empty'),
        ('mr,ref\na,"b\nb"\na,"  "\n', '4: column "ref" is empty'),
        ('mr,ref\na,b\na,"open\n', "3: not a row of comma-separated values: "),
        ("mr,ref\na\rb,c\n", "2: not a row of comma-separated values: "),
        (b"mr,ref\na,b\na,caf\xe9\n", ", line 3: not UTF-8"),
    ],
)
def test_malformed_e2e_rows(tmp_path, text, message):
    path = write_e2e(tmp_path / "files", train=text)
    with pytest.raises(UserError) as error:
        prepare("e2e_nlg", path, str(tmp_path / "prepared"), 0)
    colon = "" if message.startswith(",") else ":"
    assert str(error.value).startswith(f"{path}/trainset.csv{colon}{message}")
    assert "\n" not in str(error.value)


# What other readers take for ends of lines, and a value longer than `csv` allows by itself.
INSIDE = "a\u2028b\u0085c\x0cd\x1ce\x00f\ufeffg" + "x" * 140_000


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_lf_or_crlf_and_nowhere_else(tmp_path, mark, end):
    rows = ["mr,ref", f"{INSIDE},b", "", f'"{INSIDE}\r,","b"', '"two', 'lines",b']
    path = write_e2e(tmp_path / "e2e", train=mark + end.join([*rows, ""]).encode())
    read = [record["mr"] for record in contents("e2e_nlg", path, tmp_path / "p", "train")]
    assert read == [INSIDE, f"{INSIDE}\r,", "two\nlines"]
    lines = [json.dumps(dialogue(i, dialogue=INSIDE), ensure_ascii=False) for i in range(2)]
    lines = [line.replace("\\u0000", "\\u0041") for line in lines]
    path = write_dialogsum(tmp_path / "files")
    content = end.join(["", *lines[:1], "", " ", *lines[1:]]).encode()  # the last without an end
    (tmp_path / "files" / "train.jsonl").write_bytes(mark + content)
    read = contents("dialogsum", path, tmp_path / "p", "train")
    assert [record["fname"] for record in read] == ["r0", "r1"]
    assert {record["dialogue"] for record in read} == {INSIDE.replace("\x00", "A")}


SQL = {"question": "How many?", "context": "CREATE TABLE t (a VARCHAR)", "answer": "SELECT 1"}


@pytest.mark.parametrize("indent", [None, 1])
def test_the_array_that_sql_create_context_is_published_as(tmp_path, indent):
    """Under its own name or renamed: an error says what is read instead."""
    array = json.dumps([SQL, SQL], indent=indent)
    published_file = tmp_path / "sql_create_context_v4.json"
    published_file.write_text(array)
    for path in (tmp_path, published_file):
        with pytest.raises(
            UserError, match="without splits: cut its one array into these"
        ) as error:
            prepare("sql_context", str(path), str(tmp_path / "prepared"), 0)
        assert "the files train.jsonl, validation.jsonl, test.jsonl" in str(error.value)
    for split in SPLITS:
        (tmp_path / f"{split}.jsonl").write_text(array)
    with pytest.raises(UserError) as error:
        prepare("sql_context", str(tmp_path), str(tmp_path / "prepared"), 0)
    message = "train.jsonl:1: expected a JSON object, found list; write one object a line"
    assert str(error.value) == f"{tmp_path}/{message}"


def test_a_chat_record_knows_its_line_and_not_its_directory(tmp_path):
    """Equal files in two directories are the same prepared data."""
    chat = {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]}
    prepared = tmp_path / "prepared"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for split in SPLITS:
            (tmp_path / name / f"{split}.jsonl").write_text(f"\n{json.dumps(chat)}\n")
        train = contents("chat", str(tmp_path / name), prepared, "train")
        assert [record["line"] for record in train] == ["train.jsonl:2", "train.jsonl:2"]
        assert [len(json.loads(record["messages"])) for record in train] == [1, 3]
    assert len(list(prepared.iterdir())) == 1


def test_an_empty_jsonl_file_and_one_that_is_not_utf8(tmp_path):
    path = write_dialogsum(tmp_path / "files")
    (tmp_path / "files" / "train.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"train\.jsonl:1: the file is empty"):
        prepare("dialogsum", path, str(tmp_path / "prepared"), 0)
    (tmp_path / "files" / "train.jsonl").write_bytes(b"\n\n\xff")
    with pytest.raises(UserError, match=r"train\.jsonl, line 3: not UTF-8"):
        prepare("dialogsum", path, str(tmp_path / "prepared"), 0)


def test_byte_order_marks_and_carriage_returns_are_accepted(tmp_path):
    path = write_e2e(tmp_path / "files", train=b"\xef\xbb\xbfmr,ref\r\nname[A],A.\r\n")
    assert contents("e2e_nlg", path, tmp_path / "prepared", "train") == [
        {"mr": "name[A]", "references": ("A.",)}
    ]


def test_missing_files_say_which_are_expected_and_where_to_get_them(tmp_path):
    for path in (str(tmp_path / "nowhere"), ""):
        with pytest.raises(UserError, match=re.escape("github.com/tuetschek/e2e-dataset")) as error:
            prepare("e2e_nlg", path, str(tmp_path), 0)
        for part in ("trainset.csv, devset.csv, testset_w_refs.csv", "--config.data.path"):
            assert part in str(error.value)
    path = write_dialogsum(tmp_path / "files")
    (tmp_path / "files" / "validation.jsonl").unlink()
    with pytest.raises(UserError, match="has no validation split: .*data.validation_share"):
        prepare("dialogsum", path, str(tmp_path), 0)


def test_unknown_split_and_unwritable_directory(tmp_path):
    with pytest.raises(
        UserError, match="unknown split 'dev': choose one of train, validation, test"
    ):
        open_source("dialogsum", "", str(tmp_path), 0, "dev")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match="cannot write prepared data to .*--config.data.prepared_dir"
    ):
        prepare("dialogsum", "", str(tmp_path / "file" / "below"), 0)


def test_published_dialogsum(tmp_path):
    path = published("dialogsum")
    sources = {s: open_source("dialogsum", str(path), str(tmp_path), 0, s) for s in SPLITS}
    for split, source in sources.items():
        lines = (path / f"{split}.jsonl").read_text().rstrip("\n").split("\n")
        assert len(source) == len(lines)
        for index in (0, len(lines) // 2, len(lines) - 1):
            original = json.loads(lines[index])
            assert source[index]["fname"] == original["fname"]
            assert source[index]["dialogue"] == original["dialogue"]
            assert len(source[index]["summaries"]) == (3 if split == "test" else 1)


def test_published_e2e(tmp_path):
    path = str(published("e2e_nlg"))
    train, validation, test = (open_source("e2e_nlg", path, str(tmp_path), 0, s) for s in SPLITS)
    assert len(train) == 42061
    assert train[0]["references"] == (
        "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.",
    )
    assert len(validation) == 547
    assert sum(len(record["references"]) for record in validation) == 4672
    assert len({record["mr"] for record in test}) == len(test)
