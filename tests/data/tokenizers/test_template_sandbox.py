"""Templates that would take all memory or time end in one line, published ones are not hindered."""

import json
import time

import jinja2.sandbox
import pytest
from small_tokenizers import CHATML, published_path

from ssjax.data.tokenizers.chat_template import ChatTemplate
from ssjax.errors import UserError

CHAT = [{"role": "user", "content": "Hello there"}] * 3
BIG = 10**10

LOOPS = "{{% for i in range(9**5) %}}{{% for j in range(9**5) %}}{}{{% endfor %}}{{% endfor %}}"
TWO = "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}"


def doubled(expression, start="'a'"):
    body = expression if expression.startswith("{") else f"{{% set n.x = {expression} %}}"
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{body}{{% endfor %}}"


ENDLESS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops that write": LOOPS.format("x"),
    "empty loops": LOOPS.format(""),
    "text of the template": "{% for i in range(9**5) %}" + "z" * 5000 + "{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "two of each": TWO,
    "recursive loop": "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "times": f"{{{{ 'a' * {BIG} }}}}",
    "times, turned": "{{ 10**10 * ['a'] }}",
    "power": "{{ 9 ** 99999999 }}",
    "squares": doubled("n.x * n.x", "3"),
    "plus": doubled("n.x + n.x"),
    "join": doubled("n.x ~ n.x"),
    "block": doubled("{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "lists in lists": doubled("[n.x, n.x]") + "{{ n.x }}",
    **{
        f"method {call}": f"{{{{ ('x\\t' * 999).{call} }}}}"
        for call in (
            f"center({BIG})",
            f"ljust({BIG})",
            f"rjust({BIG})",
            f"zfill({BIG})",
            f"expandtabs({BIG})",
            "replace('x', 'y' * 99999)",
            "join('y' * 99999)",
            "translate({120: 'y' * 99999})",
        )
    },
    **{
        f"filter {call}": f"{{{{ ('x\\n' * 999) | {call} }}}}"
        for call in (
            f"center({BIG})",
            f"indent({BIG})",
            f"batch({BIG}, 'x') | list",
            f"slice({BIG}) | list",
            "replace('x', 'y' * 99999)",
            "join('y' * 99999)",
            "wordwrap(1, wrapstring='y' * 99999)",
            f"tojson(indent={BIG})",
            f"list | map('center', {BIG}) | list",
        )
    },
    "join of a generator": "{{ range(99999) | map('string') | join('x' * 99999) }}",
    "round": f"{{{{ 1.5 | round({BIG}) }}}}",
    "percent": f"{{{{ '%{BIG}d' % 1 }}}}",
    "percent star": f"{{{{ '%*d' % ({BIG}, 1) }}}}",
    "filter format": f"{{{{ '%{BIG}d' | format(1) }}}}",
    "format": f"{{{{ '{{:>{BIG}}}'.format(1) }}}}",
    "nested format": f"{{{{ '{{:{{}}}}'.format(1, {BIG}) }}}}",
    "repeated format": "{{ ('{0}' * 999).format('x' * 99999) }}",
    "string of shared parts": "{{ (['a' * 99999] * 999) | string }}",
    "output of shared parts": "{{ ['a' * 99999] * 999 }}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
    "brackets": "{{ " + "(" * 99999 + "1" + ")" * 99999 + " }}",
    "blocks": "{% if true %}" * 3000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_it_ends_in_one_line(name):
    start = time.process_time()
    with pytest.raises(UserError, match="^here: the chat template ") as error:
        ChatTemplate(ENDLESS[name], {}, "here").render(CHAT, add_generation_prompt=True)
    assert time.process_time() - start < 4
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


ORDINARY = [
    CHATML,
    "{% for m in messages %}{{ m.content.strip().replace('l', 'L').split('e')|join }}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | list }}",
    "{{ messages | tojson(indent=2) | indent(4) }}{{ 'x' * 40 ~ '-' ~ 2 ** 10 }}{{ 'a%05d' % 7 }}",
    "{% set n = namespace(x='') %}"
    "{% for m in messages[::-1] %}{% set n.x = n.x + m.content %}{% endfor %}"
    "{{ n.x | upper | wordwrap(20) | center(99) }}{{ '{:>9}|{}'.format('a', n.x[:3]) }}",
    "{% macro turn(m) %}[{{ m.role }}] {{ caller() }}{% endmacro %}{% for m in messages %}"
    "{% call turn(m) %}{{ m.content }}{% endcall %}{{ loop.index0 ~ ['a'][0] }}\n{% endfor %}",
    "{% set x %}{{ messages[0].content }}!{% endset %}{{ x }}{{ dict(a=1) | items | list }}"
    "{% for a, b in {'k': 'v'} | dictsort %}{{ a }}={{ b }}{% else %}none{% endfor %}",
]


@pytest.mark.parametrize("source", ORDINARY)
@pytest.mark.parametrize("count, size", [(1, 1), (3, 12), (601, 40), (3, 9_000)])
def test_ordinary_templates_write_what_jinja_writes(source, count, size):
    chat = [
        {"role": ("user", "assistant")[i % 2], "content": f"Hello {i} " * size}
        for i in range(count)
    ]
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, indent=indent)
    expected = plain.from_string(source).render(messages=chat, add_generation_prompt=True)
    template = ChatTemplate(source, {}, "here")
    assert template.render(chat, add_generation_prompt=True) == expected


@pytest.mark.parametrize("name", ["qwen/qwen2.5", "qwen/qwen3", "gemma/", "phi3_mini/"])
def test_published_templates_may_write_long_chats(name):
    path = published_path(f"{name}_tokenizer_config.json".replace("/_", "/"))
    source = json.loads(path.read_text())["chat_template"]
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, name)
    for count, size in ((1, 5), (1001, 30), (3, 300_000)):
        chat = [
            {"role": ("user", "assistant")[i % 2], "content": "x y\n" * size} for i in range(count)
        ]
        assert len(template.render(chat, add_generation_prompt=True)) > 3 * count * size
