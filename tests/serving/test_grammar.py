"""Which tokens a grammar lets follow every node of a draft tree."""

import json
import random

import numpy as np
import pydantic
import pytest
import small_tokenizers

from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.decoding.tree import NO_PARENT
from ssjax.errors import UserError
from ssjax.serving.grammar import Grammar, Grammars, json_schema
from ssjax.serving.problems import Problem
from ssjax.serving.structure import ResponseFormat, StructuredOutputs, grammar_of

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
GRAMMARS = (
    json_schema(SCHEMA),
    Grammar("regex", "(Anna|Bob) wants (two )?tickets[.]{1,3}"),
    Grammar("choice", json.dumps(["a red coat", "a car", "\u00e9"])),
    Grammar("grammar", 'root ::= "Why" " " ("Bob" | "Dan") "?"*'),
)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def tokenizer(request):
    return tokenizer_from_files(getattr(small_tokenizers, request.param)(), "tests")


def ids_of(mask):
    """Tokens of a bit mask, by NumPy's own unpacking."""
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def spelled(grammars, tokenizer, grammar, ids):
    """What may follow some ids, asked of the library's tokens one by one, from the start."""
    follower = grammars.follow(grammar)
    follower.take(ids)
    return None if follower.failed else ids_of(follower.allowed())


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: grammar.kind)
def test_masks_of_a_tree_are_those_of_each_path_alone(tokenizer, grammar):
    """Random texts of the grammar, and trees after them with nodes that fit and others."""
    size, eos = tokenizer.vocab_size + 3, set(tokenizer.eos_ids)  # a padded table
    grammars, rng = Grammars(tokenizer, size), random.Random(0)
    refused = fitting = 0
    for _ in range(12):
        follower, taken = grammars.follow(grammar), []
        for _ in range(rng.randrange(6)):
            fit = sorted(ids_of(follower.allowed()) - eos)
            if fit:
                taken.append(rng.choice(fit))
                follower.take(taken[-1:])
        tokens, parent, paths = [0], [NO_PARENT], {0: []}
        for node in range(1, 12):
            above = rng.choice(sorted(paths))
            fit = spelled(grammars, tokenizer, grammar, [*taken, *paths[above]]) or set()
            pool = sorted(fit) if fit and rng.random() < 0.7 else range(size)
            tokens.append(rng.choice(pool))
            parent.append(above if rng.random() < 0.9 else NO_PARENT)
            if parent[-1] != NO_PARENT:
                paths[node] = [*paths[above], tokens[-1]]
        masks = np.full((12, grammars.num_words), 7, np.int32)
        follower.masks(tokens, parent, masks, seconds=1e9)
        for node in range(12):
            expected = None
            if node in paths and not eos & set(paths[node]):
                expected = spelled(grammars, tokenizer, grammar, [*taken, *paths[node]])
            assert ids_of(masks[node]) == (expected or set())
            assert not expected or max(expected) < tokenizer.vocab_size
            refused, fitting = refused + (not expected), fitting + bool(expected)
        # The text goes on where it stood.
        assert ids_of(follower.allowed()) == spelled(grammars, tokenizer, grammar, taken)
        hurried = np.zeros_like(masks)
        follower.masks(tokens, parent, hurried, seconds=-1.0)
        assert ids_of(hurried[0]) == ids_of(masks[0]) and not hurried[1:].any()
    assert refused > 20 and fitting > 20


def test_random_tokens_that_are_allowed_spell_what_was_asked_for(tokenizer):
    """To the end of sequence, which comes where the text may end and nowhere else."""
    grammars, rng = Grammars(tokenizer, tokenizer.vocab_size), random.Random(1)
    strict = SCHEMA | {"x-guidance": {"whitespace_flexible": False}}
    for _ in range(10):
        follower, ids = grammars.follow(json_schema(strict)), []
        while not ids or ids[-1] not in tokenizer.eos_ids:
            follower.take(ids[-1:])
            ids.append(rng.choice(sorted(ids_of(follower.allowed()))))
        assert not follower.failed
        found = json.loads(b"".join(map(tokenizer.token_bytes, ids)))
        assert found.keys() == {"name", "old"} and isinstance(found["old"], bool)
        assert len(found["name"]) <= 6


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (json_schema({"type": "nothing"}), "JSON schema cannot be used: Invalid type"),
        (json_schema({"not": {}}), "not"),
        (Grammar("regex", "(a"), "regular expression .*unclosed group"),
        (Grammar("grammar", "root ::= other"), "grammar .*other"),
        (Grammar("grammar", "start: ("), "grammar"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(grammar, message):
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
    with pytest.raises(UserError, match=message) as caught:
        Grammars(tokenizer, tokenizer.vocab_size).follow(grammar)
    assert "\n" not in str(caught.value)


def test_what_bodies_ask_for():
    def read(format_=None, outputs=None):
        return grammar_of(
            None if format_ is None else ResponseFormat.model_validate(format_),
            None if outputs is None else StructuredOutputs.model_validate(outputs),
        )

    named = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    assert read() is read({"type": "text"}) is read(None, {}) is None
    assert read(named) == read(None, {"json": SCHEMA}) == json_schema(SCHEMA)
    assert read(None, {"json": json.dumps(SCHEMA)}) == json_schema(SCHEMA)
    assert read({"type": "json_object"}) == read(None, {"json_object": True})
    assert read(None, {"regex": "a"}) == Grammar("regex", "a")
    assert read(None, {"choice": ["a", "b"]}) == Grammar("choice", '["a", "b"]')
    assert read(None, {"grammar": "start: /a/"}) == Grammar("grammar", "start: /a/")
    for asked in (
        ({"type": "json_object"}, {"regex": "a"}),
        (None, {"regex": "a", "choice": ["a"]}),
        ({"type": "json_schema"}, None),
        (None, {"json": "nonsense"}),
    ):
        with pytest.raises(Problem):
            read(*asked)
    for wrong in ({"choice": []}, {"structural_tag": "{}"}):
        with pytest.raises(pydantic.ValidationError):
            read(None, wrong)
