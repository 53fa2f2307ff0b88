import datetime
import json
import re

import jinja2
import pytest
import tokenizers
from small_tokenizers import (
    CHATML,
    as_json,
    byte_level,
    config,
    llama,
    published_path,
    sentencepiece,
    small,
)

from ssjax.data.tokenizers.chat_template import ChatTemplate
from ssjax.data.tokenizers.tokenizer import open_tokenizer, tokenizer_from_files
from ssjax.errors import UserError

HELLO = [{"role": "user", "content": "Hello"}]
CHATS = {
    "one question": HELLO,
    "with a system prompt": [{"role": "system", "content": "Be kind."}, *HELLO],
    "several turns": [
        *HELLO,
        {"role": "assistant", "content": "  Yes?\n"},
        {"role": "user", "content": "Wo ist das Café? 日本 \U0001f389 <|im_end|>"},
    ],
    "answered": [*HELLO, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi!"}],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source, messages=HELLO, add_generation_prompt=False, tokens=TOKENS):
    template = ChatTemplate(source, tokens, "here")
    return template.render(messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}", "<s>Hello</s>"),
        ("{% if add_generation_prompt %}a{% else %}b{% endif %}", "b"),
        ("{%- for m in messages %}\n    {{- m['role'] }}\n{%- endfor %}\n", "user"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),  # blocks take their lines along
        ("{{ {'b': 'é<>', 'a': 1} | tojson }}", '{"b": "é<>", "a": 1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hello!"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ tools is none and documents is none }}", "True"),
        ("{{ messages[0].content | trim }}{{ unknown }}", "Hello"),
    ],
)
def test_what_templates_use(source, expected):
    assert render(source) == expected


def test_the_generation_prompt():
    assert render(CHATML) == "<|im_start|>user\nHello<|im_end|>\n"
    prompt = render(CHATML, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_today():
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert render("{{ strftime_now('%d %b %Y') }}") in (
        today,
        datetime.datetime.now().strftime("%d %b %Y"),
    )


@pytest.mark.parametrize(
    "source, reason",
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_rejects_the_messages(source, reason):
    with pytest.raises(UserError, match=r"^here: the chat template rejects these ") as error:
        render(source)
    assert reason in str(error.value)
    assert str(error.value).endswith(
        "change their roles, order or fields to what the template expects"
    )
    assert "\n" not in str(error.value)


def test_a_template_that_is_not_jinja():
    with pytest.raises(UserError, match=r"^here: .* not valid Jinja \(line 2: .*; replace it by"):
        render("a\n{% if %}")


def test_the_messages_are_not_changed():
    messages = [{"role": "user", "content": "a", "parts": ["b"]}]
    with pytest.raises(UserError, match="unsafe"):
        render("{{ messages[0].update(content='c') }}", messages)
    assert messages == [{"role": "user", "content": "a", "parts": ["b"]}]


def test_no_template():
    with pytest.raises(UserError, match=r"^tokenizer sentencepiece/tokenizer.model has no chat te"):
        small("sentencepiece").encode_chat(HELLO, add_generation_prompt=True)


@pytest.mark.parametrize(
    "name, start, end", [("byte level", 1, 2), ("sentencepiece chat", 360, 361)]
)
def test_ids_of_a_chat(name, start, end):
    tokenizer = small(name)
    assert tokenizer.encode_chat(HELLO, add_generation_prompt=True) == [
        *tokenizer.prefix_ids,
        start,
        *tokenizer.encode_continuation("user\nHello"),
        end,
        *tokenizer.encode_continuation("\n"),
        start,
        *tokenizer.encode_continuation("assistant\n"),
    ]


@pytest.mark.parametrize("template", ["{{ bos_token }}a", "a"])
@pytest.mark.parametrize("files, bos", [(sentencepiece(), 2), (llama(), 1)])
def test_the_prefix_stands_in_front_once(files, bos, template):
    config = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = tokenizer_from_files(files | {"tokenizer_config.json": as_json(config)}, "here")
    ids = tokenizer.encode_chat(HELLO, add_generation_prompt=True)
    assert ids == [bos, *tokenizer.encode("a")]


def test_no_prefix_for_a_family_that_has_none():
    tokenizer = small("byte level")
    ids = tokenizer.encode_chat(HELLO, add_generation_prompt=False)
    assert tokenizer.prefix_ids == () and ids[0] == 1


def test_gemma_rejects_a_system_prompt():
    config = json.loads(published_path("gemma/tokenizer_config.json").read_bytes())
    tokens = {"bos_token": config["bos_token"]}
    rendered = render(config["chat_template"], CHATS["several turns"][:2], True, tokens)
    assert rendered == (
        "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    with pytest.raises(UserError, match=r"\(System role not supported\)"):
        render(config["chat_template"], CHATS["with a system prompt"], True, tokens)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(
    "name",
    [
        "qwen/qwen2.5_tokenizer_config.json",
        "qwen/qwen3_tokenizer_config.json",
        "phi3_mini/tokenizer_config.json",
        "gemma/tokenizer_config.json",
    ],
)
def test_published_templates_render_as_in_transformers(name, chat):
    transformers = pytest.importorskip("transformers")
    config = json.loads(published_path(name).read_bytes())
    tokens = {k: v for k, v in config.items() if re.fullmatch("(bos|eos|pad|unk)_token", k) and v}
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_buffer(byte_level()["tokenizer.json"]),
        chat_template=config["chat_template"],
        **tokens,
    )
    for add_generation_prompt in (False, True):
        options = {"add_generation_prompt": add_generation_prompt}
        try:
            expected = reference.apply_chat_template(CHATS[chat], tokenize=False, **options)
        except jinja2.TemplateError:
            with pytest.raises(UserError, match="rejects"):
                render(config["chat_template"], CHATS[chat], add_generation_prompt, tokens)
        else:
            rendered = render(config["chat_template"], CHATS[chat], add_generation_prompt, tokens)
            assert rendered == expected


def test_a_published_chat_has_single_ids():
    tokenizer = open_tokenizer(published_path("phi3_mini"))
    hello = tokenizer.encode("Hello")
    ids = tokenizer.encode_chat(HELLO, add_generation_prompt=True)
    assert ids == [32010, *hello, 32007, 32001]  # these take the newline after them along


def test_a_template_in_a_file_of_its_own_goes_first():
    files = byte_level() | {"chat_template.jinja": "{{ 1 }}é".encode()}
    assert tokenizer_from_files(files, "here").chat_template == "{{ 1 }}é"


@pytest.mark.parametrize(
    "named, chosen",
    [
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "chat", "template": "c"}, {"name": "rag", "template": "r"}], "c"),
        ([], None),
        ("", None),
    ],
)
def test_named_templates(named, chosen):
    files = byte_level() | config(chat_template=named)
    assert tokenizer_from_files(files, "here").chat_template == chosen
