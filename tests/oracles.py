"""What the tests compare the product with: other algorithms for the same results.

The forward pass here is NumPy in float64, one unpadded sequence at a time, with one explicit
(T + A*J) x (T + A*J) mask over concatenated rows; it has no batch, cache or segments.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.config import AdaptationConfig, LossConfig, ModelConfig, OptimizerConfig, StreamsConfig
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import Memoryless, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.tree import DraftTree
from ssjax.models.attention import Causal
from ssjax.models.parameters import unstack_layers
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.training.losses import Batch
from ssjax.training.optimizer import make_optimizer
from ssjax.training.step import init_state, make_train_step

LOGIT_TOLERANCE = 1e-4  # float32 against float64, or two float32 algorithms; logits of size 10
HIDDEN_TOLERANCE = 1e-5  # float32 against float32, the same algorithm in another layout
BFLOAT16_TOLERANCE = 0.15  # largest difference of bfloat16 and float32 logits, share of their range

MODEL = ModelConfig(
    vocab_size=13,
    embed_dim=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
)
SMALL = ModelConfig(  # for tests of text in and text out; vocab_size is the tokenizer's
    embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16
)
# As the paper has them; what is more is asked for by the tests of it.
STREAMS = StreamsConfig(num_streams=3, num_stream_layers=2, parent_rank=0, root_rank=0)
GREEDY = Sampling()
NEVER = (10**6,)  # an end-of-sequence id that no model has


def make_model(scan=True, num_streams=3, **changes) -> Transformer:
    """The test model with some sizes changed."""
    keys = {field.name for field in dataclasses.fields(StreamsConfig)} & changes.keys()
    streams = {key: changes.pop(key) for key in keys}
    adaptation = changes.pop("adaptation", AdaptationConfig())
    return Transformer(
        dataclasses.replace(MODEL, **changes),
        dataclasses.replace(STREAMS, num_streams=num_streams, **streams),
        scan=scan,
        adaptation=adaptation,
    )


_APART = ("stream_init_", "stream_root_", "stream_lora_", "parent_")


def random_params(model: Transformer, seed: int, table_scale=1.0):
    """Scanned parameters from NumPy, matrices 2-3 times wider than at initialisation.

    Wide weights put the margins of argmax far above float noise; norms differ from one.
    """
    rng, map_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    scanned = model.clone(scan=True)
    shapes = abstract_params(scanned)

    def fill(path, leaf):
        names = [part.key for part in path]
        # So that the others do not depend on whether there are such maps.
        own = map_rng if names[-1].startswith(_APART) else rng
        noise = own.standard_normal(leaf.shape)
        if names[-1] in ("embedder", "lm_head"):
            return noise * table_scale
        if names[-1] == "stream_embedding":
            return noise
        if names[-1].startswith(("lora_", "exit_", "medusa_", *_APART)):
            return noise / np.sqrt(leaf.shape[-1])
        if names[-1] == "lm_head_bias":
            return noise
        if names[-1].startswith("table_") or names[-2].endswith("_proj"):
            return noise * 2.0 / np.sqrt(leaf.shape[-1])
        return 1.0 + 0.2 * noise

    filled = jax.tree_util.tree_map_with_path(fill, shapes)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), filled)


def ragged_prompts(seed, count, shortest=1, longest=8, vocab_size=13):
    """Random prompts of mixed lengths; ids may be the pad id 0."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    return [rng.integers(0, vocab_size, n).tolist() for n in lengths]


def pad(sequences, width):
    """[B, width] int32 padded with 0, and lengths [B] int32."""
    padded = np.zeros((len(sequences), width), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, np.array([len(s) for s in sequences], np.int32)


# The model.


def forward(
    params,
    config: ModelConfig,
    tokens,
    anchors=(),
    num_streams=0,
    positions=None,
    visible=None,
    main_reads_streams=False,
    angle=0.0,
    after=0,
):
    """Hidden states before the head and trunk states of one sequence, NumPy float64.

    Args:
      params: scanned or unrolled form.
      config: sizes.
      tokens: [T] ids.
      anchors: positions in the sequence that carry streams.
      num_streams: J.
      positions: [T] rotary positions; None: 0..T-1.
      visible: [T, T] bool; None: causal.
      main_reads_streams: the main row of an anchor sees all of its streams.
      angle: by which the values of stream j turn j times.
      after: the token after the last one, the root of its streams.

    Returns:
      main logits [T, V] and stream logits [A, J, V].
    """
    if "layers" in params["stream_layers"]:
        params = unstack_layers(params)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    num_main = len(tokens)
    positions = list(range(num_main)) if positions is None else list(positions)
    visible = np.tril(np.ones((num_main, num_main), bool)) if visible is None else visible

    x = params["embedder"][np.asarray(tokens)]
    for i in range(len(params.get("trunk", {}))):
        x = _layer(params["trunk"][f"layers_{i}"], config, x, positions, visible)
    rows, row_positions = list(x), list(positions)
    owner = [(t, None, 0) for t in range(num_main)]  # position, anchor, stream
    for a, t in enumerate(anchors):
        start = x[t]
        if "stream_init_up" in params:
            start = start + params["stream_init_up"] @ (params["stream_init_down"] @ x[t])
        if "stream_root_up" in params:
            root = params["embedder"][[*tokens, after][t + 1]]
            root = root / np.sqrt((root**2).mean() + 1e-6)
            start = start + params["stream_root_up"] @ (params["stream_root_down"] @ root)
        for j in range(1, num_streams + 1):
            rows.append(start + params["stream_embedding"][j - 1] if angle == 0 else start)
            row_positions.append(positions[t] + j)
            owner.append((t, a, j))
    full = np.zeros((len(rows), len(rows)), bool)
    for i, (t, a, j) in enumerate(owner):
        for k, (u, other_a, other_j) in enumerate(owner):
            if other_j == 0:
                full[i, k] = visible[t, u]
            elif j == 0:
                full[i, k] = main_reads_streams and t == u
            else:
                full[i, k] = a == other_a and other_j <= j
    x = np.stack(rows)
    for i in range(len(params["stream_layers"])):
        turns = [angle * j for _, _, j in owner]
        x = _layer(params["stream_layers"][f"layers_{i}"], config, x, row_positions, full, turns)
    x = _norm(x, params["final_norm"]["weight"], config.norm_epsilon)
    logits = x @ params.get("lm_head", params["embedder"]).T
    return logits[:num_main], logits[num_main:].reshape(len(anchors), num_streams, logits.shape[1])


def _norm(x, weight, epsilon):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight


def _layer(weights, config, x, positions, visible, turns=None):
    attention, mlp = weights["attention"], weights["mlp"]
    normed = _norm(x, weights["attention_norm"]["weight"], config.norm_epsilon)
    q, k, v = (normed @ attention[f"{name}_proj"]["weight"].T for name in "qkv")
    per_kv, width = config.num_heads // config.num_kv_heads, config.head_dim
    heads = []
    for n in range(config.num_heads):
        own, shared = slice(n * width, (n + 1) * width), n // per_kv
        theirs = slice(shared * width, (shared + 1) * width)
        rotated_q = rotate(q[:, own], positions, config.rope_theta)
        rotated_k = rotate(k[:, theirs], positions, config.rope_theta)
        scores = np.where(visible, rotated_q @ rotated_k.T / np.sqrt(width), -np.inf)
        weight = np.exp(scores - scores.max(axis=1, keepdims=True))
        values = v[:, theirs] if turns is None else turn(v[:, theirs], turns)
        heads.append(weight / weight.sum(axis=1, keepdims=True) @ values)
    x = x + np.concatenate(heads, axis=1) @ attention["o_proj"]["weight"].T
    normed = _norm(x, weights["mlp_norm"]["weight"], config.norm_epsilon)
    gate = normed @ mlp["gate_proj"]["weight"].T
    up = normed @ mlp["up_proj"]["weight"].T
    return x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down_proj"]["weight"].T


def rotate(x, positions, theta):
    """Rotary positions as a product of complex numbers."""
    half = x.shape[1] // 2
    return turn(x, np.outer(positions, theta ** (-2.0 * np.arange(half) / x.shape[1])))


def turn(x, angles):
    """Rows [X, H] of H/2 complex numbers, turned by angles [X] or [X, H/2]."""
    half = x.shape[1] // 2
    angles = np.reshape(angles, (len(x), -1))
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)


def greedy(params, config, prompt, max_new_tokens, eos_ids):
    """Greedy continuation by a whole NumPy forward pass per token."""
    return continued(
        lambda tokens: forward(params, config, tokens)[0][-1], prompt, max_new_tokens, eos_ids
    )


def continued(logits_after, prompt, max_new_tokens, eos_ids, sampling=GREEDY, key=None):
    """The plain loop: one token at a time, each from the logits after all that came before.

    Args:
      logits_after: tokens -> [V].
      prompt: ids.
      max_new_tokens, eos_ids: where it ends.
      sampling: the distribution.
      key: of the row; unused when greedy.
    """
    output = ()
    while len(output) < max_new_tokens and output[-1:] not in [(eos,) for eos in eos_ids]:
        logits = logits_after([*prompt, *output])
        output += (drawn(logits, prompt, output, sampling, eos_ids, key),)
    return output


def drawn(logits, prompt, output, sampling, eos_ids, key):
    """The next token: an argmax, of the warped distribution plus noise where that is asked for."""
    scores = adjusted(logits, prompt, output, sampling, eos_ids)
    if sampling.temperature == 0:
        return int(scores.argmax())
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores[scores < np.sort(scores)[-sampling.top_k]] = -np.inf
    order = np.argsort(-scores)
    probability = np.exp(scores - scores.max())
    probability /= probability.sum()
    mass_before = np.cumsum(probability[order]) - probability[order]
    scores[order[mass_before >= sampling.top_p]] = -np.inf
    scores[probability < sampling.min_p * probability.max()] = -np.inf
    position = len(prompt) + len(output)
    noise = jax.random.gumbel(jax.random.fold_in(key, position), (len(scores),), jnp.float32)
    return int((scores + np.asarray(noise)).argmax())


def adjusted(logits, prompt, output, sampling, eos_ids):
    """One vector of logits after prompt and output, token by token, in float64."""
    scores = np.array(logits, np.float64)
    for token in set(prompt) | set(output):
        factor = sampling.repetition_penalty
        scores[token] *= factor if scores[token] < 0 else 1 / factor
    for token in set(output):
        scores[token] -= sampling.presence_penalty
    for token in sampling.banned_tokens:
        scores[token] = -np.inf
    if len(output) < sampling.min_new_tokens:
        scores[[token for token in eos_ids if token < len(scores)]] = -np.inf
    return scores


@functools.partial(jax.jit, static_argnums=(0, 2), static_argnames="num_streams")
def apply(model, params, method, *arguments, **kwargs):
    """`model.apply`, compiled once per model and shape."""
    return model.apply({"params": params}, *arguments, **kwargs, method=method)


def run_model(model, params, tokens, **kwargs):
    """The product's forward pass over a causal batch."""
    tokens = jnp.asarray(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return apply(model, params, None, tokens, positions, Causal(), **kwargs)


def logits_of(model, params, hidden):
    """The product's LM head."""
    return np.asarray(apply(model, params, "logits", hidden))


def log_softmax(logits):
    """NumPy float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# Decoding.


def make_decoder(model, params, eos_ids=NEVER, bucket=8):
    """A decoder with one prompt bucket and pad id 0."""
    return Decoder(model, params, eos_ids=eos_ids, pad_id=0, prompt_buckets=(bucket,))


def generate(decoder, prompts, drafter, *, deferred=True, drafter_params=None, **asked):
    """`Decoder.generate` with the defaults of the tests. asked: fields of `Request`."""
    way = Way(drafter, deferred, drafter_params)
    return decoder.generate(make_request(prompts, **asked), way)


def make_request(prompts, **asked):
    """Greedy, in one batch, unless asked otherwise."""
    defaults = {"max_new_tokens": 12, "sampling": GREEDY, "seed": 0, "batch_size": len(prompts)}
    return Request(prompts, **(defaults | asked))


def tokens_of(completions):
    """The token tuples alone."""
    return [completion.tokens for completion in completions]


# Training.


def batch_of(tokens, prompt_length, length):
    """A `Batch` of one sequence a row, by the lengths of prompts and of whole sequences."""
    index = np.arange(np.shape(tokens)[1])
    inside = index < np.asarray(length)[:, None]
    is_target = inside & (index >= np.asarray(prompt_length)[:, None])
    return Batch(jnp.asarray(tokens, jnp.int32), jnp.asarray(inside, jnp.int32), is_target)


def counting_batch(seed, rows=16, prompt_length=2, target_length=9, vocab_size=13):
    """Sequences that count up from a random start, modulo the vocabulary."""
    start = np.random.default_rng(seed).integers(0, vocab_size, (rows, 1))
    tokens = (start + np.arange(prompt_length + target_length)) % vocab_size
    whole = prompt_length + target_length
    return batch_of(tokens, np.full(rows, prompt_length), np.full(rows, whole))


def train_to_count(steps, **changes):
    """Trains the test model on counting; returns (model, params, last metrics)."""
    model = make_model(**changes)
    config = OptimizerConfig(learning_rate=5e-3, warmup_steps=20)
    optimizer = make_optimizer(config, steps)
    params = jax.tree.map(lambda x: x * 0.5, random_params(model, seed=1, table_scale=0.2))
    step = make_train_step(
        model, optimizer, LossConfig(stream_weight=1.0), num_anchors=9, accumulation=1
    )
    step = jax.jit(step)
    state = init_state(params, optimizer)
    for i in range(steps):
        batch = counting_batch(i, vocab_size=model.config.vocab_size)
        state, metrics = step(state, {}, batch)
    return model, state.params, metrics


# Drafters that know the future. They hold tables of the true continuation, row by row.


@dataclasses.dataclass(frozen=True, eq=False)
class TableDrafter(Memoryless):
    """Proposes trees from a table; how far they are right is decided by the test.

    Attributes:
      truth: [B, capacity] int, the tokens that the model itself produces, prompt included.
      offset: [variants, M] int, added to the true token at each node's depth, modulo V;
        0 is right.
      parents: [variants, M] int, -1 for the root and for unused nodes.
      vocab_size: V.
      num_streams: streams it asks for and ignores.

    The variant of a row is (length + row) modulo the number of variants.
    """

    truth: np.ndarray
    offset: np.ndarray
    parents: np.ndarray
    vocab_size: int = 13
    num_streams: int = 0

    @property
    def depths(self):
        depths = np.zeros(self.parents.shape, np.int32)
        for variant, row in enumerate(self.parents):
            for node, parent in enumerate(row):
                if parent >= 0:
                    depths[variant, node] = depths[variant, parent] + 1
        return depths

    @property
    def num_nodes(self):
        return self.parents.shape[1]

    @property
    def max_depth(self):
        return int(self.depths.max())

    def propose(self, context):
        length, rows = context.length, jnp.arange(context.root.shape[0])
        variant = (length + rows) % len(self.parents)
        parent, depth = jnp.asarray(self.parents)[variant], jnp.asarray(self.depths)[variant]
        truth = jnp.asarray(self.truth)
        slot = jnp.minimum(length[:, None] - 1 + depth, truth.shape[1] - 1)
        drafted = (truth[rows[:, None], slot] + jnp.asarray(self.offset)[variant]) % self.vocab_size
        # Unused nodes and the root's column: token 0 for the unused, as drafters pad.
        drafted = jnp.where(parent < 0, 0, drafted).at[:, 0].set(context.root)
        fields = (drafted, parent, depth)
        return DraftTree(*(field.astype(jnp.int32) for field in fields)), ()


def truth_table(prompts, outputs, capacity, vocab_size=13):
    """[B, capacity] true tokens of every row; random ids after the end."""
    table = np.random.default_rng(0).integers(0, vocab_size, (len(prompts), capacity))
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        whole = [*prompt, *output]
        table[row, : len(whole)] = whole
    return table.astype(np.int32)


def chain(depth):
    """[1, depth + 1] parents of a chain."""
    return np.arange(-1, depth, dtype=np.int32)[None]
