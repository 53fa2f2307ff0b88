"""A small random model whose greedy margins are wide, prompts, and drafters that follow a script.

Fixtures only: with importlib import mode a test module cannot import this file.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.config import ModelConfig, StreamsConfig
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import Memoryless
from ssjax.decoding.tree import DraftTree
from ssjax.models.transformer import Transformer, init_params

VOCAB = 50
EOS = (7, 9)
PAD = 0
NEVER = (VOCAB + 1,)  # an end of sequence that no model draws
WEIGHT_SCALE = 3.0  # puts argmax margins far above float noise
SHARPNESS = 1.0  # of queries and keys; scaled like the rest, attention would see one token alone


def make_model(vocab_size=VOCAB, dtype="float32"):
    config = ModelConfig(
        vocab_size=vocab_size,
        embed_dim=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=64,
        dtype=dtype,
    )
    return Transformer(config, StreamsConfig(3, 2, parent_rank=0, root_rank=0), scan=True)


def make_params(model, seed=0):
    params = jax.jit(lambda: init_params(model, seed))()

    def scale(path, x):
        if any(getattr(key, "key", None) in ("q_proj", "k_proj") for key in path):
            return x * SHARPNESS
        return x * WEIGHT_SCALE if x.ndim > 1 else x

    return jax.tree_util.tree_map_with_path(scale, params)


def make_decoder(model, params, eos_ids=EOS, buckets=(16,)):
    return Decoder(model, params, eos_ids=eos_ids, pad_id=PAD, prompt_buckets=buckets)


def random_prompts(seed, count, lengths):
    """Prompts of the given lengths in turn; ids include PAD and the end-of-sequence ids."""
    rng = np.random.default_rng(seed)
    return [
        tuple(int(t) for t in rng.integers(0, VOCAB, lengths[i % len(lengths)]))
        for i in range(count)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class ScriptDrafter(Memoryless):
    """Proposes from script[row, position] in a tree of fixed shape.

    Node i of the shape holds (script at its position + offsets[i]) % vocab_size: offset 0 is
    right if the script is the true continuation. Parents are -1 for unused nodes. With
    `right`, nodes deeper than right[row, length] are wrong whatever their offset is.
    """

    script: np.ndarray  # [B, any] the whole true sequence of each row
    parents: tuple[int, ...]
    offsets: tuple[int, ...]
    right: np.ndarray | None = None  # [B, capacity + 1]
    record: list | None = None  # gets (candidates, length) of every call
    num_streams: int = 0
    vocab_size: int = VOCAB

    @property
    def num_nodes(self):
        return len(self.parents)

    @property
    def depths(self):
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def max_depth(self):
        return max(self.depths)

    def propose(self, context):
        length = context.length
        if self.record is not None:
            jax.debug.callback(self._store, context.candidates, length, ordered=True)
        script, depths = jnp.asarray(self.script), jnp.array(self.depths, jnp.int32)
        position = jnp.minimum(length[:, None] - 1 + depths, script.shape[1] - 1)
        proposed = jnp.take_along_axis(script, position, axis=1)
        offsets = jnp.broadcast_to(jnp.array(self.offsets, jnp.int32), proposed.shape)
        if self.right is not None:
            right = jnp.take_along_axis(jnp.asarray(self.right), length[:, None], axis=1)
            offsets = jnp.where(depths > right, offsets + 5, offsets)
        proposed = (proposed + offsets) % self.vocab_size
        tree = DraftTree(
            tokens=proposed.at[:, 0].set(context.root).astype(jnp.int32),
            parent=jnp.broadcast_to(jnp.array(self.parents, jnp.int32), proposed.shape),
            depth=jnp.broadcast_to(depths, proposed.shape),
        )
        return tree, ()

    @property
    def num_candidates(self):
        return self.vocab_size

    def _store(self, candidates, length):
        self.record.append((jax.tree.map(np.asarray, candidates), np.asarray(length)))


def chain(script, depth, offset=0, **options):
    """A drafter of one branch, every node off by `offset`."""
    return ScriptDrafter(script, tuple(range(-1, depth)), (0,) + (offset,) * depth, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class HostDrafter(Memoryless):
    """Trees written by plain Python in every pass; one compiled program for all of them.

    write["tree"](row, sequence) returns (token, parent) of nodes 1, 2, ...; the rest of the
    num_nodes is unused and holds token 0.
    """

    num_nodes: int
    max_depth: int
    write: dict
    num_streams: int = 0

    def propose(self, context):
        shape = jax.ShapeDtypeStruct((3, context.root.shape[0], self.num_nodes), np.int32)
        tree = jax.pure_callback(self._trees, shape, context.tokens, context.length)
        return DraftTree(tree[0].at[:, 0].set(context.root), tree[1], tree[2]), ()

    def _trees(self, tokens, length):
        tokens, length = np.asarray(tokens), np.asarray(length)
        tree = np.zeros((3, len(length), self.num_nodes), np.int32)
        tree[1] = -1
        for row, count in enumerate(length):
            sequence = tuple(int(t) for t in tokens[row, :count])
            for node, (token, parent) in enumerate(self.write["tree"](row, sequence), start=1):
                depth = tree[2, row, parent] + 1 if parent >= 0 else 0
                assert depth <= self.max_depth and parent < node
                tree[:, row, node] = token, parent, depth
        return tree


def script_of(prompts, outputs, capacity):
    """[B, capacity] whole sequences; after them the id 1."""
    script = np.ones((len(prompts), capacity), np.int32)
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        whole = tuple(prompt) + tuple(output)
        script[row, : len(whole)] = whole
    return script


@pytest.fixture(scope="session")
def kit():
    """The helpers of this file."""
    names = (
        "VOCAB",
        "EOS",
        "PAD",
        "NEVER",
        "make_model",
        "make_params",
        "make_decoder",
        "random_prompts",
        "ScriptDrafter",
        "HostDrafter",
        "chain",
        "script_of",
    )
    return types.SimpleNamespace(**{name: globals()[name] for name in names})


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def params(model):
    return make_params(model)


@pytest.fixture(scope="session")
def decoder(model, params):
    return make_decoder(model, params)


@pytest.fixture(scope="session")
def endless(model, params):
    """The same model without an end of sequence: every completion reaches its limit."""
    return make_decoder(model, params, eos_ids=NEVER)


@pytest.fixture(scope="session")
def full_logits(model, params):
    """Main logits [B, T, V] of whole sequences, without a cache: scanned form, one call."""
    from ssjax.models.attention import Causal

    @jax.jit
    def forward(tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        output = model.apply({"params": params}, tokens, positions, Causal())
        return model.apply({"params": params}, output.hidden, method="logits")

    return lambda tokens: np.asarray(forward(jnp.asarray(tokens, jnp.int32)))
