"""Who writes the next draft tree.

A drafter says how large its trees get and what it needs from the pass, and turns that into a
tree. It is static: a frozen, hashable object that the compiled loop closes over. Nothing it
proposes can change the output, only its speed.

    drafter           costs                                 needs
    PlainDrafter      nothing                               nothing
    BestFirstDrafter  J stream rows a pass, or K heads      a model trained with streams or with
    StaticDrafter     the same                              Medusa heads
    PromptLookup      nothing                               output that repeats its prompt
    MergedDrafter     its first drafter's                   its first drafter's
    ModelDrafter      D passes of a second model            that model; see draft_model.py
"""

import dataclasses
from typing import Any, Protocol

import jax
from flax import struct

from ssjax.config import DecodeConfig, StreamsConfig
from ssjax.decoding.candidates import NUM_RANKED_ANEW, Candidates
from ssjax.decoding.chances import log_chances, without_unlikely
from ssjax.decoding.lookup import lookup_chain, merge_chain
from ssjax.decoding.tree import DraftTree, StaticTree, best_first_tree, root_only, static_tree
from ssjax.errors import UserError
from ssjax.models.parameters import Params

# Rows of a pass whose draft is smaller than it might be: the root alone, or a power of two, which
# products on CPU take best. Each is a program of its own; one that saves less than a third of the
# rows is left out.
_NARROW = (1, 4, 8, 16, 32)


@struct.dataclass
class Context:
    """What a drafter may look at."""

    tokens: jax.Array  # [B, capacity] int32, all tokens of every row
    length: jax.Array  # [B] int32, how many are valid; the last of them is the root of the tree
    root: jax.Array  # [B] int32, tokens[b, length[b] - 1]
    # Of streams or Medusa heads; entry j (from 0) scores the token j + 1 positions after the root;
    # None if the drafter needs neither.
    candidates: Candidates | None
    params: Params | None  # the drafter's own, if it has any
    memory: Any  # what the drafter keeps between passes


class Drafter(Protocol):
    """What the loop asks of a drafter."""

    @property
    def num_nodes(self) -> int:
        """M, nodes of every tree it returns, root included."""

    @property
    def max_depth(self) -> int:
        """R - 1, an upper bound of the depth of its nodes."""

    @property
    def num_streams(self) -> int:
        """J, streams that it needs at the last accepted node; 0 for none."""

    @property
    def num_heads(self) -> int:
        """Medusa heads that it needs there instead; 0 for none."""

    @property
    def num_candidates(self) -> int:
        """How many of the best tokens of each stream or head it may use."""

    @property
    def kept_nodes(self) -> int:
        """Draft nodes that the early exit lets into the stream layers; 0: all. See pruning.py."""

    @property
    def exit_threshold(self) -> float:
        """Chance given its parent below which the early exit drops a node; 0: none."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Rows that a pass may have, rising, M last: it has the fewest that hold all its nodes."""

    def start(
        self, params: Params | None, prompts: jax.Array, prompt_length: jax.Array, capacity: int
    ) -> Any:
        """Reads the prompts; returns the memory before the first tree.

        Args:
          params: the drafter's own, if it has any.
          prompts: [B, T] int32, padded on the right.
          prompt_length: [B] int32.
          capacity: slots of the caches.
        """

    def propose(self, context: Context) -> tuple[DraftTree, Any]:
        """Returns the next tree and the memory after it."""


class Memoryless:
    """What drafters that keep nothing, prune nothing and need no heads have in common."""

    num_heads = 0
    num_candidates = 0
    kept_nodes = 0
    exit_threshold = 0.0

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.num_nodes,)

    def start(self, params, prompts, prompt_length, capacity) -> tuple:
        return ()


@dataclasses.dataclass(frozen=True)
class PlainDrafter(Memoryless):
    """No draft: one token per pass. Ordinary decoding is this drafter in the same loop."""

    num_nodes: int = 1
    max_depth: int = 0
    num_streams: int = 0

    def propose(self, context: Context) -> tuple[DraftTree, Any]:
        return root_only(context.root), ()


class _TreeDrafter(Memoryless):
    """What the drafters that read their trees off candidates have in common."""

    temperatures: tuple[float, ...]  # by stream, see `Candidates.tempered`; empty: all 1
    min_node_chance: float  # nodes that are kept with a smaller chance are not drafted; 0: all are

    @property
    def widths(self) -> tuple[int, ...]:
        if not self.min_node_chance or self.kept_nodes or self.exit_threshold:
            return (self.num_nodes,)
        whole = self.num_nodes
        return (*(width for width in _NARROW if 3 * width <= 2 * whole), whole)

    def _ranked(self, used: int) -> int:
        """Candidates needed by a tree of so many: what is outside of few says little."""
        judged = self.temperatures or self.min_node_chance
        return max(used, NUM_RANKED_ANEW) if judged else used

    def judged(self, candidates: Candidates) -> Candidates:
        """The candidates as the drafter takes them: at its temperatures."""
        return candidates.tempered(self.temperatures) if self.temperatures else candidates

    def propose(self, context: Context) -> tuple[DraftTree, Any]:
        candidates = self.judged(context.candidates)
        tree = self._write(context.root, candidates)
        if self.min_node_chance:
            tree = without_unlikely(tree, log_chances(tree, candidates), self.min_node_chance)
        return tree, ()


@dataclasses.dataclass(frozen=True)
class BestFirstDrafter(_TreeDrafter):
    """The num_draft_nodes continuations with the highest joint probability.

    Of streams or, with num_streams 0, of Medusa heads.
    """

    num_draft_nodes: int
    num_streams: int
    kept_nodes: int = 0
    exit_threshold: float = 0.0
    num_heads: int = 0
    temperatures: tuple[float, ...] = ()
    min_node_chance: float = 0.0

    @property
    def num_nodes(self) -> int:
        return 1 + self.num_draft_nodes

    @property
    def num_candidates(self) -> int:
        return self._ranked(self.num_draft_nodes)

    @property
    def max_depth(self) -> int:
        return min(self.num_streams or self.num_heads, self.num_draft_nodes)

    def _write(self, root: jax.Array, candidates: Candidates) -> DraftTree:
        return best_first_tree(root, candidates, self.num_draft_nodes)


@dataclasses.dataclass(frozen=True)
class StaticDrafter(_TreeDrafter):
    """A tree of fixed shape, filled with the top tokens of each stream, or of each Medusa head."""

    tree: StaticTree
    num_streams: int
    kept_nodes: int = 0
    exit_threshold: float = 0.0
    num_heads: int = 0
    temperatures: tuple[float, ...] = ()
    min_node_chance: float = 0.0

    @property
    def num_nodes(self) -> int:
        return self.tree.num_nodes

    @property
    def num_candidates(self) -> int:
        return self._ranked(max(self.tree.ranks) + 1)

    @property
    def max_depth(self) -> int:
        return self.tree.max_depth

    def _write(self, root: jax.Array, candidates: Candidates) -> DraftTree:
        return static_tree(self.tree, root, candidates)


@dataclasses.dataclass(frozen=True)
class PromptLookup(Memoryless):
    """The tokens that followed the last time the row ended as it does now; see lookup.py."""

    num_draft_nodes: int
    longest_match: int
    num_streams: int = 0

    @property
    def num_nodes(self) -> int:
        return 1 + self.num_draft_nodes

    @property
    def max_depth(self) -> int:
        return self.num_draft_nodes

    def propose(self, context: Context) -> tuple[DraftTree, Any]:
        found, count = lookup_chain(
            context.tokens, context.length, self.num_draft_nodes, self.longest_match
        )
        return merge_chain(root_only(context.root), found, count), ()


@dataclasses.dataclass(frozen=True)
class MergedDrafter:
    """The tree of another drafter and, in the same tree, what a prompt lookup finds."""

    drafter: Drafter
    lookup: PromptLookup
    kept_nodes: int = 0
    exit_threshold: float = 0.0

    @property
    def num_nodes(self) -> int:
        return self.drafter.num_nodes + self.lookup.num_draft_nodes

    @property
    def max_depth(self) -> int:
        return max(self.drafter.max_depth, self.lookup.max_depth)

    @property
    def num_streams(self) -> int:
        return self.drafter.num_streams

    @property
    def num_heads(self) -> int:
        return self.drafter.num_heads

    @property
    def num_candidates(self) -> int:
        return self.drafter.num_candidates

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.num_nodes,)

    def start(self, params, prompts, prompt_length, capacity) -> Any:
        return self.drafter.start(params, prompts, prompt_length, capacity)

    def propose(self, context: Context) -> tuple[DraftTree, Any]:
        tree, memory = self.drafter.propose(context)
        lookup = self.lookup
        found, count = lookup_chain(
            context.tokens, context.length, lookup.num_draft_nodes, lookup.longest_match
        )
        return merge_chain(tree, found, count), memory


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to decode: who drafts, and when the streams run."""

    drafter: Drafter
    deferred: bool  # as `DecodeConfig.deferred`
    # The drafter's own, in the form that it names and on the devices of the model; None for all
    # but a draft model.
    drafter_params: Params | None = dataclasses.field(default=None, compare=False, repr=False)


def make_drafter(decode: DecodeConfig, streams: StreamsConfig) -> Drafter:
    """The drafter that a config asks for, as far as the model alone can draft.

    Args:
      decode: decode.num_streams 0 means all.
      streams: what the model was trained with.

    Raises:
      UserError: streams or heads of a model that has none, a tree deeper than there are, or a
        draft model, which `Run.way` opens.
    """
    trained = {"streams": streams.num_streams, "medusa": streams.medusa_heads}
    kind = decode.drafter
    if kind == "auto":
        kind = next((name for name, number in trained.items() if number), "plain")
    lookup = PromptLookup(decode.lookup_nodes or decode.num_nodes, decode.lookup_match)
    if kind == "plain":
        return PlainDrafter()
    if kind == "prompt_lookup":
        return lookup
    if kind == "draft_model":
        raise UserError(
            f"config: decode.drafter is draft_model ({decode.draft_model}), which is not part of "
            "the model; here only what a model drafts itself is looked at: set decode.drafter=auto"
        )
    if not trained[kind]:
        raise UserError(
            f"config: decode.drafter is {kind}, but the model was not trained with it; decode with "
            "plain or prompt_lookup, or train with drafter.kind=" + kind
        )
    number = decode.num_streams or trained[kind]
    needs = {"num_streams": number, "num_heads": 0}
    if kind == "medusa":
        needs = {"num_streams": 0, "num_heads": number}
    drafter = _tree_drafter(decode, number, needs)
    drafter = dataclasses.replace(drafter, min_node_chance=decode.min_node_chance)
    if decode.lookup_nodes:
        drafter = MergedDrafter(drafter, lookup)
    return dataclasses.replace(
        drafter, kept_nodes=decode.kept_nodes, exit_threshold=decode.exit_threshold
    )


def _tree_drafter(decode: DecodeConfig, deepest: int, needs: dict[str, int]) -> Drafter:
    if decode.tree == "best_first":
        return BestFirstDrafter(decode.num_nodes, **needs)
    if decode.tree == "static":
        tree, key = StaticTree.from_branching(decode.branching), "branching"
    else:
        try:
            tree, key = StaticTree(decode.parents, decode.ranks), "parents"
        except ValueError as error:
            raise UserError(f"config: decode.parents and decode.ranks: {error}") from None
    if tree.max_depth > deepest:
        raise UserError(
            f"config: decode.{key} {getattr(decode, key)} is {tree.max_depth} deep but the model "
            f"looks {deepest} tokens ahead; shorten it or train more streams"
        )
    return StaticDrafter(tree, **needs)
