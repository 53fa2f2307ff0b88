"""Jinja for templates that strangers wrote: they can neither reach out nor run away.

Jinja's own sandbox keeps a template from Python's internals and from long ranges. This one also
counts what a template does: every pass of a loop, every call and filter, and every character or
member of what they make. Work that the messages do not explain ends it, before the memory for it
is taken.
"""

import contextlib
import contextvars
import functools
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

# Published templates spend less than ten on a character of the messages.
_WORK = 500_000
_WORK_PER_CHARACTER = 100
_COPIED = 8  # characters of a text that is only copied, for the work of writing one
_MAX_SECONDS = 5.0  # for steps that are slow themselves

# Filters that take containers apart and make no text of them.
_STRUCTURAL = frozenset(
    (
        "attr",
        "batch",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "unique",
    )
)


class TooMuchWork(Exception):
    """A template does more than the messages explain."""


class _Work:
    """What a template may still do."""

    def __init__(self, amount: int):
        self._left = amount
        self._deadline = time.monotonic() + _MAX_SECONDS

    def check(self, amount: int) -> None:
        """Raises TooMuchWork if that is not left."""
        if amount > self._left or time.monotonic() > self._deadline:
            raise TooMuchWork

    def spend(self, amount: int) -> None:
        """Takes it off. Raises: TooMuchWork."""
        self.check(amount)
        self._left -= amount

    def weigh(self, *values: Any) -> int:
        """Characters and members of values, those inside others too. Raises: TooMuchWork."""
        total, inside = 0, list(values)
        while inside:
            value = inside.pop()
            if isinstance(value, str | bytes):
                total += len(value)
            elif isinstance(value, int):
                total += value.bit_length() // 4
            elif isinstance(value, Mapping | list | tuple | set | frozenset):
                total += len(value)
                self.check(total)
                inside += value
                inside += value.values() if isinstance(value, Mapping) else ()
            self.check(total)
        return total


_work: contextvars.ContextVar[_Work] = contextvars.ContextVar("_work")


@contextlib.contextmanager
def limited_work(messages: Any) -> Iterator[None]:
    """Where a template is compiled or rendered; messages: what it is given."""
    token = _work.set(_Work(2**40))
    try:
        size = _work.get().weigh(messages)
        _work.set(_Work(_WORK + _WORK_PER_CHARACTER * size))
        yield
    finally:
        _work.reset(token)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment whose templates are rendered within `limited_work`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options):
        super().__init__(finalize=_shown, optimized=False, **options)
        del self.globals["lipsum"]  # text of any length

    def add_filters(self, **more) -> None:
        """Adds filters and has all of them watched."""
        self.filters |= more
        self.filters = {name: _watched(name, call) for name, call in self.filters.items()}

    def from_string(self, source, globals=None, template_class=None):
        tree = _Counted().visit(self.parse(source))
        return super().from_string(tree, globals, template_class)

    def call(self, context, obj, *args, **kwargs):  # positional, as Jinja calls it
        of = getattr(obj, "__self__", None)
        values = (*args, *kwargs.values())
        if isinstance(of, str):
            _check_growth(obj.__name__, of, values)
        return _counted(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context, operator, left, right):
        work = _work.get()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers:
            work.check(left.bit_length() * abs(right))
        elif operator == "*":
            sizes = [v if isinstance(v, int) else work.weigh(v) for v in (left, right)]
            work.check(work.weigh(left, right) if numbers else abs(sizes[0] * sizes[1]))
        elif operator == "%" and isinstance(left, str):
            _check_growth("format", left, right if isinstance(right, tuple) else (right,))
        elif operator == "+":
            work.check(work.weigh(left, right))
        return _counted(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value):
        call = super().wrap_str_format(value)
        if call is None:
            return None

        @functools.wraps(call)
        def watched(*args, **kwargs):
            _check_growth("format", value.__self__, (*args, *kwargs.values()))
            return call(*args, **kwargs)

        return watched

    @staticmethod
    def step(amount: int) -> None:
        """Called where a template writes text of its own or begins a pass of a loop."""
        _work.get().spend(amount)

    @staticmethod
    def concatenation(values: list) -> str:
        """What the operator ~ does."""
        _work.get().check(_work.get().weigh(values))
        return _counted("".join(map(str, values)))


class _Counted(jinja2.visitor.NodeTransformer):
    """Puts counters into a parsed template."""

    def visit_For(self, node):
        self.generic_visit(node)
        node.body.insert(0, _step(1, node.lineno))
        return node

    def visit_Macro(self, node):
        self.generic_visit(node)
        node.body.insert(0, _step(1, node.lineno))
        return node

    def visit_Output(self, node):
        self.generic_visit(node)
        size = sum(len(text.data) for text in node.find_all(jinja2.nodes.TemplateData))
        return [_step(size, node.lineno), node]

    def visit_Concat(self, node):
        self.generic_visit(node)
        return _call("concatenation", jinja2.nodes.List(node.nodes), node.lineno)


def _call(name: str, argument: jinja2.nodes.Expr, line: int) -> jinja2.nodes.Expr:
    function = jinja2.nodes.EnvironmentAttribute(name)
    return jinja2.nodes.Call(function, [argument], [], None, None).set_lineno(line)


def _step(amount: int, line: int) -> jinja2.nodes.Stmt:
    statement = jinja2.nodes.ExprStmt(_call("step", jinja2.nodes.Const(amount), line))
    return statement.set_lineno(line)


def _counted(value: Any) -> Any:
    """A value that something made; what a container holds was there before."""
    size = 1
    if isinstance(value, str | bytes):
        size += len(value) // _COPIED
    elif isinstance(value, int):
        size += value.bit_length() // 4
    elif isinstance(value, list | tuple | dict):
        size += len(value)
    _work.get().spend(size)
    return value


def _shown(value: Any) -> Any:
    """A value that becomes text next."""
    _work.get().spend(1 + _work.get().weigh(value))
    return value


def _watched(name: str, call):
    """A filter that may not make more than is left."""
    has_context = hasattr(call, "jinja_pass_arg")

    @functools.wraps(call)
    def watched(*args, **kwargs):
        first, (value, *rest) = args[:has_context], args[has_context:]
        if isinstance(value, Iterator):
            value = list(value)
        _check_growth(name, value, (*rest, *kwargs.values()))
        return _counted(call(*first, value, *rest, **kwargs))

    return watched


def _check_growth(name: str, value: Any, args: tuple) -> None:
    """Checks how large the result of a filter or a method of texts can get."""
    work = _work.get()
    size = 0 if name in _STRUCTURAL else work.weigh(value, args)
    number = max((abs(arg) for arg in args if isinstance(arg, int)), default=0)
    longest = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
    text = value if isinstance(value, str) else ""
    match name:
        case "replace":
            size += text.count(str(args[0])) * len(str(args[1])) if len(args) > 1 else 0
        case "join":
            size += longest * size if text == "" else len(text) * size
        case "indent":
            size += (1 + text.count("\n")) * (number + longest)
        case "wordwrap":
            size += size * longest
        case "tojson":
            size += size * number
        case "expandtabs":
            size += text.count("\t") * number
        case "translate":
            size *= size
        case "format":
            widths = (int(digits[:12]) for digits in re.findall("[0-9]+", text))
            size = (1 + text.count("%") + text.count("{")) * size + sum(widths) + number
        case _:  # center, ljust, zfill, batch, slice, round, ...
            size += number
    work.check(size)
