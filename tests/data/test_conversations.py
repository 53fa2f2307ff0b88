"""SQL, pairs and chats: from files to exact prompt and target ids."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import small_tokenizers

from ssjax.data import length_report, pipeline
from ssjax.data.builders import open_source
from ssjax.data.tasks import CHAT, DIALOGSUM, PAIRS, SQL_CONTEXT
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.errors import UserError

ROOT = Path(__file__).parents[2]
LENGTHS = {"max_prompt_length": 999, "max_target_length": 999}
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ASKED = {"role": "user", "content": "Why a red coat?"}
ANSWERED = {"role": "assistant", "content": "Anna wants it."}
AGAIN = {"role": "user", "content": "Anna?"}
LAST = {"role": "assistant", "content": "Yes."}


def write(directory, *lines):
    """The three files of a task, all with these lines."""
    for split in ("train", "validation", "test"):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (directory / f"{split}.jsonl").write_text(text + "\n", encoding="utf-8")
    return str(directory)


def records(directory, task):
    return list(open_source(task, str(directory), str(directory / "prepared"), 0, "train"))


def with_template(template):
    files = small_tokenizers.sentencepiece()
    config = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template}
    return tokenizer_from_files(files | {"tokenizer_config.json": json.dumps(config).encode()}, "t")


def pieces(tokenizer, ids):
    """The literal text of ids, special tokens spelled out."""
    names = {tokenizer.encode(t, special=True)[-1]: t for t in ("<|im_start|>", "<|im_end|>")}
    text = b""
    for i in ids:
        text += tokenizer.token_bytes(i) or names.get(i, f"[{i}]").encode()
    return text.decode()


TALK = [ASKED, ANSWERED, AGAIN, LAST, AGAIN, ANSWERED]
# Writes answers that are past in another way.
FORGETTING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U: ' + m['content'] + '\\n' }}"
    "{% elif loop.last %}{{ m['content'] + eos_token }}{% else %}{{ '-' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("limits", [(99, 99), (99, 14), (30, 99)])
@pytest.mark.parametrize("packing", [False, True])
def test_answers_of_a_conversation_share_a_row(tmp_path, limits, packing):
    """Rows come apart into the examples of the records; what is longer than a limit stays alone."""
    write(tmp_path, {"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK[2:]})
    source = records(tmp_path, "chat")
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "t")
    examples = [pipeline.encode_example(record, CHAT, tokenizer, *limits) for record in source]
    layout = pipeline.BatchLayout(1, *limits, join_answers=True, packing=packing)
    num_steps = pipeline.num_steps(source, CHAT, tokenizer, layout, seed=0, num_epochs=1)
    batches = pipeline.train_batches(source, CHAT, tokenizer, layout, seed=0)
    found, num_rows = [], 0
    for batch in (batches[i] for i in range(num_steps)):
        tokens, segments, is_target = (batch[n][0] for n in ("tokens", "segments", "is_target"))
        for number in range(1, segments.max() + 1):
            own = segments == number
            num_rows += 1
            edges = np.flatnonzero(np.diff(np.pad(is_target[own].astype(int), 1))).reshape(-1, 2)
            assert np.diff(edges).sum() <= limits[1]
            found += [
                (tokens[own][:first].tolist(), tokens[own][first:end].tolist())
                for first, end in edges
            ]

    def key(example):
        return len(example[0]), example

    if not packing:  # one epoch exactly
        assert sorted(found, key=key) == sorted(examples, key=key)
    assert all(example in examples for example in found)
    if limits == (99, 99):
        assert num_rows < len(found)


def test_a_template_that_forgets_leaves_answers_alone(tmp_path):
    write(tmp_path, {"messages": TALK})
    source, tokenizer = records(tmp_path, "chat"), with_template(FORGETTING)
    layout = pipeline.BatchLayout(1, 99, 99, join_answers=True)
    assert pipeline.num_steps(source, CHAT, tokenizer, layout, seed=0, num_epochs=1) == 3
    extending = with_template(FORGETTING.replace("{{ '-' }}", "{{ m['content'] + eos_token }}"))
    assert pipeline.num_steps(source, CHAT, extending, layout, seed=0, num_epochs=1) == 1


def test_a_target_of_a_byte_level_tokenizer_begins_with_the_space(tmp_path):
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "t")
    record = {"dialogue": "#Person1#: Why?", "summaries": ("Bob wants tea.",)}
    prompt, target = pipeline.encode_example(record, DIALOGSUM, tokenizer, **LENGTHS)
    assert tokenizer.decode(prompt) == "#Person1#: Why?\n\nSummary:"
    assert pieces(tokenizer, target) == " Bob wants tea.<|im_end|>"
    assert pipeline.answer_text(tokenizer, target) == "Bob wants tea."


def test_sql_records(tmp_path):
    line = {"question": "How many?", "context": "CREATE TABLE t (a VARCHAR)", "answer": "SELECT 1"}
    [record] = records(Path(write(tmp_path, line)), "sql_context")
    expected = "CREATE TABLE t (a VARCHAR)\n\nQuestion: How many?\n\nSQL:"
    assert SQL_CONTEXT.prompt(record) == expected
    assert SQL_CONTEXT.references(record) == ("SELECT 1",)
    bare = SQL_CONTEXT.record_from_input("CREATE TABLE t (a VARCHAR)\n\nQuestion: How many?")
    assert SQL_CONTEXT.prompt(bare) == expected


def test_pairs_are_put_together_as_they_are(tmp_path):
    """Nothing is added between prompt and response, whichever side has the space."""
    tokenizer = tokenizer_from_files(small_tokenizers.sentencepiece(), "t")
    lines = [
        {"prompt": "Anna wants", "response": " two tickets"},
        {"prompt": "An", "response": "na"},
    ]
    for record, whole in zip(
        records(Path(write(tmp_path, *lines)), "pairs"),
        ("Anna wants two tickets", "Anna"),
        strict=True,
    ):
        prompt, target = pipeline.encode_example(record, PAIRS, tokenizer, **LENGTHS)
        assert target[-1] == tokenizer.eos_id
        assert tokenizer.decode(prompt) + tokenizer.decode_continuation(target) == whole


@pytest.mark.parametrize("kind", ["sentencepiece_chat", "byte_level"])
def test_what_a_chat_trains_literally(tmp_path, kind):
    """ChatML: the end of the turn is learned, the line break after it and the headers are not."""
    tokenizer = tokenizer_from_files(getattr(small_tokenizers, kind)(), "t")
    first, second = records(
        Path(write(tmp_path, {"messages": [ASKED, ANSWERED, AGAIN, LAST]})), "chat"
    )
    prompt, target = pipeline.encode_example(first, CHAT, tokenizer, **LENGTHS)
    head = "<|im_start|>user\nWhy a red coat?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt[: len(tokenizer.prefix_ids)] == list(tokenizer.prefix_ids)
    own = pieces(tokenizer, prompt[len(tokenizer.prefix_ids) :])
    assert own.removeprefix(" ") == head  # SentencePiece begins every text with a space
    assert pieces(tokenizer, target) == "Anna wants it.<|im_end|>"
    assert target[-1] == tokenizer.eos_id
    prompt, target = pipeline.encode_example(second, CHAT, tokenizer, **LENGTHS)
    assert "Anna wants it.<|im_end|>\n<|im_start|>user\nAnna?" in pieces(tokenizer, prompt)
    assert pieces(tokenizer, target) == "Yes.<|im_end|>"
    bare = CHAT.record_from_input("Why a red coat?")
    assert CHAT.prompt_ids(bare, tokenizer) == CHAT.prompt_ids(first, tokenizer)


def test_what_a_llama_2_chat_trains_literally(tmp_path):
    tokenizer = with_template(LLAMA2)
    [record] = records(Path(write(tmp_path, {"messages": [ASKED, ANSWERED]})), "chat")
    prompt, target = pipeline.encode_example(record, CHAT, tokenizer, **LENGTHS)
    assert prompt[0] == tokenizer.prefix_ids[0] and prompt.count(prompt[0]) == 1
    assert tokenizer.decode(prompt[1:]).strip() == "[INST] Why a red coat? [/INST]"
    assert tokenizer.decode_continuation(target) == " Anna wants it. "
    assert target[-1] == tokenizer.eos_id and target.count(tokenizer.eos_id) == 1


def test_a_template_without_an_end_of_turn_gets_eos(tmp_path):
    tokenizer = with_template(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    [record] = records(Path(write(tmp_path, {"messages": [ASKED, ANSWERED]})), "chat")
    _, target = pipeline.encode_example(record, CHAT, tokenizer, **LENGTHS)
    assert target[-1] == tokenizer.eos_id
    assert tokenizer.decode_continuation(target) == "Anna wants it.\n"


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path):
    tokenizer = with_template(
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    [record] = records(Path(write(tmp_path, {"messages": [ASKED, ANSWERED]})), "chat")
    with pytest.raises(UserError, match="does not begin an answered chat with the prompt"):
        pipeline.encode_example(record, CHAT, tokenizer, **LENGTHS)


def test_a_tokenizer_without_a_template_says_so_before_training(tmp_path):
    tokenizer = tokenizer_from_files(small_tokenizers.sentencepiece(), "t")
    source = records(Path(write(tmp_path, {"messages": [ASKED, ANSWERED]})), "chat")
    with pytest.raises(UserError, match="has no chat template"):
        length_report.describe(source, CHAT, tokenizer, 99, 99)


def test_share_gpt_is_the_same_conversation(tmp_path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": ASKED["content"]},
        {"from": "gpt", "value": ANSWERED["content"]},
    ]
    messages = [{"role": "system", "content": "Be brief."}, ASKED, ANSWERED]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours = records(Path(write(tmp_path / "a", {"conversations": turns})), "chat")
    assert ours == records(Path(write(tmp_path / "b", {"messages": messages})), "chat")
    assert json.loads(ours[0]["messages"]) == messages[:2]


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("sql_context", [{"question": "a"}], "2: expected a JSON object, found list"),
        ("sql_context", {"question": "a", "context": "b"}, '2: field "answer" is missing'),
        ("pairs", {"prompt": "a", "response": " "}, '2: field "response" is empty'),
        ("pairs", "{", "2: not JSON (Expecting property name"),
        ("chat", {"text": "a"}, '2: expected a list "messages"'),
        ("chat", {"messages": []}, '2: expected a list "messages"'),
        ("chat", {"messages": ["a"]}, "2: a turn should be an object, found str"),
        ("chat", {"messages": [ASKED]}, "2: no turn of the assistant"),
        ("chat", {"messages": [ANSWERED]}, "2: a conversation should begin with the user"),
        ("chat", {"messages": [{"role": "robot", "content": "a"}]}, "2: unknown role 'robot'"),
        ("chat", {"messages": [ASKED, ANSWERED | {"content": ""}]}, '2: field "content" is empty'),
        ("chat", {"messages": [ASKED, {"role": "system", "content": "a"}]}, "can only come first"),
    ],
)
def test_what_is_malformed_is_named_by_its_line(tmp_path, task, line, message):
    good = {
        "sql_context": {"question": "a", "context": "b", "answer": "c"},
        "pairs": {"prompt": "a", "response": "b"},
        "chat": {"messages": [ASKED, ANSWERED]},
    }[task]
    write(tmp_path, good, line)
    with pytest.raises(UserError) as caught:
        records(tmp_path, task)
    assert message in str(caught.value) and ".jsonl:" in str(caught.value)


def test_published_sql(tmp_path):
    """The counts of the files' own description; every record makes a prompt."""
    data = Path(os.environ.get("SSJAX_DATA", ROOT.parent / "shared" / "data")) / "sql_context"
    if not data.is_dir():
        pytest.skip("no sql_context files: set SSJAX_DATA to a directory that holds them")
    sizes = {"train": 62819, "validation": 8331, "test": 11197}
    for split, size in sizes.items():
        source = open_source("sql_context", str(data), str(tmp_path), 0, split)
        assert len(source) == size
    prompt = SQL_CONTEXT.prompt(source[0])
    assert prompt.startswith("CREATE TABLE ") and prompt.endswith("\n\nSQL:")
