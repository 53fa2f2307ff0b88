import json

import pytest
import small_tokenizers

from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.errors import UserError


def with_template(template):
    """A tokenizer without chat tokens of its own: a turn ends with </s>."""
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    files = small_tokenizers.sentencepiece() | {
        "tokenizer_config.json": json.dumps(config).encode()
    }
    return tokenizer_from_files(files, "t")


def test_dialogsum():
    task = get_task("dialogsum")
    record = {"dialogue": "#Person1#: Hi.\n#Person2#: Ho.", "summaries": ("They greet.", "Hi.")}
    assert task.prompt(record) == "#Person1#: Hi.\n#Person2#: Ho.\n\nSummary:"
    assert task.references(record) == ("They greet.", "Hi.")
    assert "#Person1#" in task.symbols


def test_e2e_nlg():
    task = get_task("e2e_nlg")
    record = {"mr": "name[X], area[riverside]", "references": ("X is by the river.",)}
    assert task.prompt(record) == "name[X], area[riverside]\n\nText:"
    assert task.references(record) == ("X is by the river.",)


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(
        UserError,
        match="^unknown task 'samsum': choose one of chat, dialogsum, e2e_nlg, pairs, sql_context$",
    ):
        get_task("samsum")


@pytest.mark.parametrize(
    ("in_prompt", "in_chat", "answer", "target"),
    [
        (r":\n", r":\n", "Yes.", "Yes."),
        (r":", r": ", "Yes.", " Yes."),
        (r": ", r":", "Yes.", "Yes."),
        (r":\n\n", r":\n", "Yes.", "Yes."),  # not "\nYes.": the prompt has both line breaks
        (r":\n\n", r":\n", "  Yes.", "  Yes."),  # the answer's own white space is its own
    ],
)
def test_white_space_between_a_chat_and_its_answer(in_prompt, in_chat, answer, target):
    """Some templates write it in another way once there is an answer."""
    tokenizer = with_template(
        "{% for m in messages %}{{ m['role'] }}{{ '" + in_chat + "' }}{{ m['content'] }}"
        "{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{{ '" + in_prompt + "' }}{% endif %}"
    )
    record = {"messages": '[{"role": "user", "content": "Why?"}]', "answer": answer}
    task = get_task("chat")
    prompt_ids, ids = task.prompt_ids(record, tokenizer), task.target_ids(record, tokenizer)
    assert tokenizer.decode_continuation(ids) == target
    assert ids[-1] == tokenizer.eos_id and ids.count(tokenizer.eos_id) == 1
    end_of_prompt = in_prompt.replace(r"\n", "\n")
    assert tokenizer.decode(prompt_ids).endswith(f"assistant{end_of_prompt}")


def test_what_a_template_writes_after_the_end_of_the_turn_is_not_learned():
    tokenizer = with_template(
        "{% for m in messages %}{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if not add_generation_prompt %}Goodbye.{{ eos_token }}{% endif %}"
    )
    record = {"messages": '[{"role": "user", "content": "Why?"}]', "answer": "Yes."}
    ids = get_task("chat").target_ids(record, tokenizer)
    assert ids == [*tokenizer.encode_continuation("Yes."), tokenizer.eos_id]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template rejects these"),
        ("{{ messages | length }}", "the chat template does not begin an answered chat"),
    ],
)
def test_what_a_template_cannot_write_is_named_by_its_line(template, message):
    tokenizer = with_template(template)
    bare = {"messages": '[{"role": "user", "content": "Why?"}]', "answer": "Yes."}
    record = bare | {"line": "train.jsonl:7"}
    task = get_task("chat")
    with pytest.raises(UserError, match=rf"^train\.jsonl:7: .*{message}"):
        task.target_ids(record, tokenizer)
    if "raise_exception" in template:
        with pytest.raises(UserError, match=rf"^train\.jsonl:7: .*{message}"):
            task.prompt_ids(record, tokenizer)
    with pytest.raises(UserError, match=message) as error:
        task.target_ids(bare, tokenizer)
    assert "jsonl" not in str(error.value)


def test_a_missing_template_is_not_the_fault_of_a_line():
    tokenizer = tokenizer_from_files(small_tokenizers.sentencepiece(), "t")
    record = get_task("chat").record_from_input("Why?") | {"line": "train.jsonl:7", "answer": "a"}
    for ids in (get_task("chat").prompt_ids, get_task("chat").target_ids):
        with pytest.raises(UserError, match="^tokenizer t.* has no chat template"):
            ids(record, tokenizer)
