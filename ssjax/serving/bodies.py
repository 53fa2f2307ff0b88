"""The bodies of requests, as OpenAI and vLLM name their fields; a field of null is not given.

Fields that we do not know are ignored, as every server of this form does; fields that we know and
cannot serve are refused, so that nobody gets an answer to another question than theirs.
"""

from typing import Annotated, Any

import pydantic
from pydantic import Field

from ssjax.serving.problems import Problem
from ssjax.serving.structure import ResponseFormat, StructuredOutputs

Seed = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Id = Annotated[int, Field(ge=0, lt=2**31)]

# Values that ask for nothing, of fields that we cannot serve.
_NEUTRAL: dict[str, tuple] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "min_tokens": (None, 0),
    "use_beam_search": (None, False),
    "prompt_logprobs": (None,),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_grammar": (None,),
    "guided_choice": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


class StreamOptions(pydantic.BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_runs: bool = False  # ours: which pass each piece of text came from
    include_drafts: bool = False  # ours: what was drafted for it


class Asking(pydantic.BaseModel):
    """What both kinds of completions have. None: as the server was started."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # -1 as vLLM says all; 0 is all too
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1000)] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[Id] | None = None
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    drafting: bool = True  # ours: false decodes plainly
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def limit(self) -> int | None:
        """New tokens at most; None: as the server was started."""
        given = self.max_completion_tokens
        return self.max_tokens if given is None else given

    @property
    def stops(self) -> tuple[str, ...] | None:
        """Stop strings; None: as the server was started."""
        if self.stop is None:
            return None
        found = [self.stop] if isinstance(self.stop, str) else self.stop
        return tuple(each for each in found if each)


class CompletionBody(Asking):
    """Of /v1/completions."""

    prompt: str | list[Id] | list[str] | list[list[Id]]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    raw: bool | None = None  # ours: texts are used without the format of the task

    @property
    def num_likeliest(self) -> int:
        """Likeliest tokens that are asked for."""
        return self.logprobs or 0

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more prompts."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return prompt


class Part(pydantic.BaseModel):
    """A part of a message."""

    type: str
    text: str = ""


class Message(pydantic.BaseModel):
    """A message of a chat."""

    role: str
    content: str | list[Part] | None = None


class ChatBody(Asking):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    @property
    def num_likeliest(self) -> int:
        """Likeliest tokens that are asked for."""
        return self.top_logprobs or 0

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as texts. Raises: Problem: one is not text alone."""
        return [{"role": each.role, "content": _text_of(each)} for each in self.messages]


class TokenizeBody(pydantic.BaseModel):
    """Of /tokenize."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True

    @property
    def chat(self) -> list[dict[str, str]]:
        """As `ChatBody.chat`."""
        return [{"role": each.role, "content": _text_of(each)} for each in self.messages or ()]


class DetokenizeBody(pydantic.BaseModel):
    """Of /detokenize."""

    tokens: list[Id]


def read_body(kind: type[pydantic.BaseModel], value: Any) -> Any:
    """A body of this kind from parsed JSON. Raises: Problem."""
    if not isinstance(value, dict):
        raise Problem("the body must be a JSON object")
    for name, neutral in _NEUTRAL.items():
        if name in value and value[name] not in neutral:
            raise Problem(f"{name} is not served here; leave it out", param=name)
    given = {name: each for name, each in value.items() if each is not None}
    try:
        return kind.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        param = str(first["loc"][0]) if first["loc"] else None
        raise Problem(f"{place}: {first['msg']}", param=param) from None


def _text_of(message: Message) -> str:
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text":
            raise Problem(
                f"a message has a part of type {part.type[:40]!r}; only text is read here",
                param="messages",
            )
    return "".join(part.text for part in content)
