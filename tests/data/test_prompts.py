"""Files of prompts: every line keeps its place, whatever it holds; outputs stay one line each."""

import json

import pytest

from ssjax.data import prompt_files
from ssjax.errors import UserError

# All that Python, or a program in C, may take for the end of a line, but LF.
ENDS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("\n\na\n \t\nb\n\n", ["", "", "a", "", "b", ""]),
        (f"a{ENDS}b\nc\n", [f"a{ENDS}b", "c"]),
        ("\u2028\n\\n\nb", ["", "", "b"]),
        (r"a\nb\n\nc \t \d", ["a\nb\n\nc \\t \\d"]),
        ("", []),
    ],
)
def test_lines_of_a_text(content, lines, tmp_path):
    assert prompt_files.parse_lines(content.encode(), "here") == lines
    (tmp_path / "p.txt").write_bytes(content.encode())
    assert prompt_files.read_file(tmp_path / "p.txt") == lines


def test_records_keep_their_place_and_hold_anything(tmp_path):
    texts = [f"a{ENDS}\nb\\n", "\ufeff", " x "]
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": "a\nb"}]
    lines = [json.dumps(text, ensure_ascii=False) for text in texts]
    lines += ["", '{"prompt": "\\ud83c\\udf89", "id": 7}', '" "', json.dumps({"messages": chat})]
    file = tmp_path / "p.JSONL"
    file.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    assert prompt_files.read_file(file) == [*texts, "", "\U0001f389", "", tuple(chat)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": 3}', "must be a JSON text"),
        (b'{"text": "a"}', "must be a JSON text"),
        (b"[1, 2]", "must be a JSON text"),
        (b"null", "must be a JSON text"),
        (b"a", "not JSON"),
        (b'"a" "b"', "not JSON"),
        (b"[" * 99999, "nested too deeply"),
        (b'"\\ud800"', "holds what is no character"),
        (b'"\xff"', "not UTF-8"),
        (b'{"messages": []}', '"messages" is of type list'),
        (b'{"messages": "hi"}', '"messages" is of type str'),
        (b'{"messages": {"role": "user"}}', '"messages" is of type dict'),
        (b'{"messages": [{"role": "user"}]}', 'message 1 needs "content", a text'),
        (b'{"messages": [{"role": "user", "content": ["a"]}]}', 'needs "content", a text'),
        (b'{"messages": [{"role": "\\udcff", "content": "a"}]}', "holds what is no character"),
    ],
)
def test_a_bad_record_names_file_and_line(line, fault, tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'"a"\n\n' + line + b'\n"b"\n')
    with pytest.raises(UserError, match=f"p.jsonl, line 3.*{fault}"):
        prompt_files.read_file(tmp_path / "p.jsonl")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(UserError, match=r"p\.txt, line 3: not UTF-8"):
        prompt_files.read_file(tmp_path / "p.txt")
    for name in ("none.txt", "none.jsonl", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            prompt_files.read_file(tmp_path / name)


def test_an_output_is_one_line_for_every_reader():
    text = f"a\n{ENDS}\\n \\ \u00e9\u65e5\x00"
    line = prompt_files.as_line(text)
    assert line.splitlines() == [line]
    assert json.loads(f'"{line}"', strict=False) == text
    assert prompt_files.as_line("a\nb") == "a\\nb" and prompt_files.as_line("") == ""


def test_questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_bytes(
        "\ufeff{}\r\n\n{}\n".format(
            '{"question_id": 1, "turns": ["a \u2028 b", "then"]}', '{"turns": ["c"]}'
        ).encode()
    )
    assert prompt_files.read_questions(file) == ["a \u2028 b", "c"]
    for line in (
        '{"turns": 3}',
        '{"turns": []}',
        '{"turns": [3]}',
        '{"turns": [" "]}',
        "[]",
        "x",
        '{"turns": "abc"}',
        '{"turns": ["\\ud800"]}',
        "{}",
    ):
        file.write_text(f'{{"turns": ["a"]}}\n\n{line}\n')
        with pytest.raises(UserError, match=r"questions\.jsonl, line 3"):
            prompt_files.read_questions(file)
    file.write_text("\n\n")
    with pytest.raises(UserError, match="holds no questions"):
        prompt_files.read_questions(file)
