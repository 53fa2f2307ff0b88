"""Chat templates: Jinja programs in which a model's authors say how a conversation is written."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext

from ssjax.data.tokenizers.template_sandbox import Sandbox, TooMuchWork, limited_work
from ssjax.errors import UserError

Messages = Sequence[Mapping[str, Any]]  # {"role": "user", "content": "Hello"}, ...


class ChatTemplate:
    """A compiled template. It comes with a model, so it runs in a sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str):
        """Compiles a template.

        Args:
          source: the Jinja text.
          special_tokens: what the template knows as bos_token, eos_token, ...
          where: names the place in error messages.

        Raises:
          UserError: the text is not Jinja.
        """
        self._special_tokens = dict(special_tokens)
        self._where = where
        try:
            with limited_work(()):
                self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise self._invalid(f"line {error.lineno}: {error.message}") from None
        except Exception as error:  # nested too deeply, say
            raise self._invalid(str(error) or type(error).__name__) from None

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The conversation as text; add_generation_prompt: ends where the answer begins.

        Raises:
          UserError: the template rejects the messages.
        """
        values = {"messages": [dict(m) for m in messages], "tools": None, "documents": None}
        values |= self._special_tokens | {"add_generation_prompt": add_generation_prompt}
        try:
            with limited_work(values["messages"]):
                return self._template.render(values)
        except TooMuchWork:
            raise UserError(
                f"{self._where}: the chat template writes or computes more than these messages "
                "explain; replace it by the one the model was published with"
            ) from None
        # A template is a program that we did not write: it can raise anything.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self._where}: the chat template rejects these messages ({reason}); "
                "change their roles, order or fields to what the template expects"
            ) from error

    def _invalid(self, reason: str) -> UserError:
        return UserError(
            f"{self._where}: the chat template is not valid Jinja ({' '.join(reason.split())}); "
            "replace it by the one the model was published with"
        )


class _Generation(jinja2.ext.Extension):
    """{% generation %}, with which some templates mark the assistant's part, changes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> jinja2.Environment:
    """What templates of Hugging Face models are written for."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.add_filters(tojson=_to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own filter escapes HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
