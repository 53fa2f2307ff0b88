"""What a body says about the structure of its output, as OpenAI and vLLM name it."""

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from ssjax.serving.grammar import Grammar, json_schema
from ssjax.serving.problems import Problem

_ANY_OBJECT = {"type": "object"}


class NamedSchema(pydantic.BaseModel):
    """Of a response format."""

    name: str = ""
    # OpenAI's clients call it so; "schema" is a name that pydantic keeps for itself.
    schema_: dict[str, Any] | bool = Field(
        alias="schema", default_factory=lambda: dict(_ANY_OBJECT)
    )


class ResponseFormat(pydantic.BaseModel):
    """The field response_format."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(pydantic.BaseModel):
    """The field structured_outputs of vLLM: exactly one of these."""

    model_config = pydantic.ConfigDict(extra="forbid")

    json_: dict[str, Any] | bool | str | None = Field(alias="json", default=None)
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None


def grammar_of(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Grammar | None:
    """What an output must follow; None: nothing. Raises: Problem."""
    found = [_of_format(response_format), *_of_outputs(structured_outputs)]
    found = [each for each in found if each is not None]
    if len(found) > 1:
        raise Problem(
            "an output can follow one grammar; give one of response_format and structured_outputs, "
            "with one field",
            param="structured_outputs",
        )
    return found[0] if found else None


def _of_format(asked: ResponseFormat | None) -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return json_schema(_ANY_OBJECT)
    if asked.json_schema is None:
        raise Problem("response_format needs json_schema", param="response_format")
    return json_schema(asked.json_schema.schema_)


def _of_outputs(asked: StructuredOutputs | None) -> list[Grammar | None]:
    if asked is None:
        return []
    schema = asked.json_
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            schema = None
        if not isinstance(schema, dict | bool):
            raise Problem(
                "structured_outputs.json is no JSON schema; give an object",
                param="structured_outputs",
            )
    return [
        None if schema is None else json_schema(schema),
        json_schema(_ANY_OBJECT) if asked.json_object else None,
        None if asked.regex is None else Grammar("regex", asked.regex),
        None if asked.choice is None else Grammar("choice", json.dumps(asked.choice)),
        None if asked.grammar is None else Grammar("grammar", asked.grammar),
    ]
