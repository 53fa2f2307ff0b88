"""Texts that follow a grammar: which tokens may come next, from the library llguidance.

The grammar is walked on the host, along the tokens that a pass kept and then along the tree that is
drafted after them. Each node gets the tokens that may follow it, so that drafts of constrained text
are verified like others:

    tree         {  -+- "  --- a        may follow:  {: " }    ": letters    a: letters "
                     +- x               x may not follow {, so the node is left out

What is drawn after a node is then drawn among those, as plain decoding of the same grammar does.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence

import numpy as np

from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.decoding.tree import NO_PARENT
from ssjax.errors import UserError

# Grammars whose compiled form is kept: those of a service are few and come again and again.
_KEPT = 64
# Of the host for one tree; nodes that are not reached until then are left out, which costs drafts
# and no token.
_SECONDS_A_TREE = 0.05
# Where a schema says how it is to be written, as the library has it.
_OPTIONS = '"x-guidance"'
# Between the tokens of JSON; without a bound a weak model may write spaces for ever.
_JSON = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What an output must follow."""

    kind: str  # as `llguidance.grammar_from` has it: "json_schema", "regex", "grammar", "choice"
    text: str  # JSON of the schema or of the list of choices, the expression, Lark or GBNF


class Grammars:
    """Grammars over the tokens of one model.

    Args:
      tokenizer: of the model.
      vocab_size: V, ids of the model; those beyond the tokenizer's are never allowed.

    Raises:
      UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        try:
            import llguidance
        except ModuleNotFoundError:
            raise UserError(
                'structured output needs llguidance; install the extra: pip install "ssjax[serve]"'
            ) from None
        self._library = llguidance
        self.num_words = -(-vocab_size // 32)
        self._eos_ids = frozenset(tokenizer.eos_ids)
        wrapper = llguidance.TokenizerWrapper(_Described(tokenizer, vocab_size))
        self._tokenizer = llguidance.LLTokenizer(wrapper, eos_token=list(tokenizer.eos_ids))
        self._compiled = functools.lru_cache(_KEPT)(self._compile)

    def follow(self, grammar: Grammar) -> "Follower":
        """A follower at the start of a text. Raises: UserError: the grammar is none."""
        return Follower(self._compiled(grammar).deep_copy(), self.num_words, self._eos_ids)

    def _compile(self, grammar: Grammar):
        library = self._library
        # Parser states in messages would be of no use to clients.
        limits = library.LLParserLimits(verbose_errors=False)
        try:
            if grammar.kind == "json_schema" and _OPTIONS not in grammar.text:
                text = library.LLMatcher.grammar_from_json_schema(grammar.text, defaults=_JSON)
            else:
                text = library.grammar_from(grammar.kind, grammar.text)
            matcher = library.LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
            problem = matcher.get_error()
        except (ValueError, TypeError) as error:
            problem = str(error)
        if problem:
            raise UserError(f"the {_NAMES[grammar.kind]} cannot be used: {_on_one_line(problem)}")
        return matcher


class Follower:
    """A grammar along one text, of which only the engine's thread knows.

    Attributes:
      num_taken: tokens of the text so far.
      failed: the text cannot be followed any more, since the grammar is too complex.
    """

    def __init__(self, matcher, num_words: int, eos_ids: frozenset[int]):
        self._matcher, self._num_words, self._eos_ids = matcher, num_words, eos_ids
        self.num_taken = 0
        self.failed = False

    def take(self, tokens: Sequence[int]) -> None:
        """Goes on along tokens that were emitted, none of which has ended the text."""
        self.num_taken += len(tokens)
        self.failed |= not self._matcher.consume_tokens(list(tokens))

    def allowed(self) -> np.ndarray:
        """[W] int32, a bit for each token that may come next; 0 in all if it has failed."""
        words = np.zeros(self._num_words, np.int32)
        if not self.failed:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            self.failed |= self._matcher.is_error()
        return words

    def masks(
        self,
        tokens: Sequence[int],
        parent: Sequence[int],
        out: np.ndarray,
        seconds: float = _SECONDS_A_TREE,
    ) -> None:
        """The tokens that may follow each node of a draft tree.

        Args:
          tokens, parent: of M nodes, parents first; node 0 is the last token taken.
          out: [M, W] int32, written. 0 in all for nodes that the grammar refuses, that nothing can
            follow, and that are unused.
          seconds: after which no more nodes are looked at.
        """
        out[1:] = 0
        out[0] = self.allowed()
        children: list[list[int]] = [[] for _ in tokens]
        for node, above in enumerate(parent):
            if above != NO_PARENT:
                children[above].append(node)
        end = time.monotonic() + seconds

        def walk(node: int) -> None:
            for child in children[node]:
                token = int(tokens[child])
                refused = not (out[node, token >> 5] >> (token & 31)) & 1
                # After an end nothing is drawn; it is emitted whether a node has drafted it or not.
                if refused or token in self._eos_ids or self.failed or time.monotonic() > end:
                    continue
                self.failed |= not self._matcher.consume_token(token)
                out[child] = self.allowed()
                walk(child)
                self.failed |= not self._matcher.rollback(1)

        walk(0)


class _Described:
    """A tokenizer as llguidance asks about it: bytes by id, and which ids are none."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._encode = tokenizer.encode_continuation
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        spelled = [tokenizer.token_bytes(i) for i in range(min(tokenizer.vocab_size, vocab_size))]
        spelled += [b""] * (vocab_size - len(spelled))
        # What stands for no text is special to the library, by a byte that no text has.
        self.special_token_ids = [i for i, each in enumerate(spelled) if not each]
        self.tokens = [each or b"\xff<%d>" % i for i, each in enumerate(spelled)]

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("texts only")  # how the library finds out
        return self._encode(text)


def json_schema(schema: dict | bool) -> Grammar:
    """JSON that a schema describes."""
    return Grammar("json_schema", json.dumps(schema))


def _on_one_line(problem: str) -> str:
    """A message of the library without the pictures of where in the text it is."""
    lines = [line.strip() for line in problem.splitlines()]
    return " ".join(line for line in lines if line.strip("^ ") and "| " not in line)[:300]


_NAMES = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
    "choice": "list of choices",
}
