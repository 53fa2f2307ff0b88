"""A training run from its config: the base, the tokenizer and the data opened, a run that was
stopped continued, and the trained model handed over.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssjax import config as config_lib
from ssjax import messages
from ssjax.config import Config, ModelConfig
from ssjax.data import pipeline
from ssjax.data.choice import choose_tokenizer, open_split
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.errors import UserError
from ssjax.files.reading import to_json
from ssjax.files.writing import write_atomic
from ssjax.models import lora
from ssjax.models.axes import param_shardings
from ssjax.models.parameters import Params, count, fingerprint, flatten, merge, split
from ssjax.models.transformer import Transformer, init_params
from ssjax.parallel import distributed, partitioning
from ssjax.training import lock, loop, optimizer
from ssjax.training.callbacks import Callback
from ssjax.training.claim import about_run, check_workdir, claim_workdir
from ssjax.training.display import Display
from ssjax.training.losses import output_names
from ssjax.training.programs import make_train_programs
from ssjax.training.records import keep_records
from ssjax.training.reporting import Reporter
from ssjax.weights import checkpoint
from ssjax.weights import load as trained_lib
from ssjax.weights.base import Base, keep_origin, open_base, read_base_config, resolve
from ssjax.weights.checkpoint import Checkpoints
from ssjax.weights.load import Trained


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a training came to."""

    trained: Trained
    mesh: Mesh  # that the weights are divided over
    complete: bool  # False: a signal stopped it, after saving


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """The directory of a run, locked by the first process for as long as the block lasts.

    Raises:
      UserError: another process trains there.
    """
    with contextlib.ExitStack() as stack:
        distributed.first(lambda: stack.enter_context(lock.hold(workdir)))
        yield


def train(config: Config, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Trains or continues the run of a config, in a directory that is `held`.

    Args:
      config: of the run, which lives in its workdir.
      callbacks: told of steps, losses and checkpoints besides what is written and shown.

    Raises:
      UserError: settings, base, data or directory do not go together, or the loss diverged.
    """
    workdir, base = Path(config.workdir), None
    if config.model.pretrained:
        base = open_base(config.model.pretrained, config.model.dtype)
        messages.say(f"base model: {base.title}")
    elif config.adaptation.mode != "full":
        raise UserError(
            f"adaptation.mode {config.adaptation.mode} adapts a base model; give one with "
            "--config.model.pretrained=DIR_OR_HUB_ID"
        )
    config = resolve(config, base)
    mesh = partitioning.make_mesh(config.mesh)
    partitioning.check_shardable(config, mesh)
    distributed.first(lambda: prepare(workdir, config, base))
    tokenizer = open_tokenizer(workdir)
    state, frozen, complete = _train(workdir, config, tokenizer, base, mesh, callbacks)
    base_config = read_base_config(workdir)
    trained = Trained(
        workdir, int(state.step), config, tokenizer, state.params, frozen, base_config
    )
    return Outcome(trained, mesh, complete)


def prepare(workdir: Path, config: Config, base: Base | None) -> None:
    """Makes the files of a run that the other processes read: config, tokenizer, prepared data.

    Raises:
      UserError: the directory holds another run, or the data cannot be read.
    """
    check_workdir(workdir, config)
    for name in ("train", "validation"):
        open_split(config, name)
    directory = None if base is None else base.directory
    tokenizer = choose_tokenizer(workdir, config, directory, messages.say)
    # What was refused until now may be started again with other settings.
    claim_workdir(workdir, config)
    tokenizer.save(workdir)


def starting_params(
    workdir: Path, config: Config, model: Transformer, base: Base | None, mesh: Mesh
) -> tuple[Params, Params]:
    """Trainable (float32) and frozen (compute dtype) parameters before the first step."""

    def new_leaves():  # the compiler leaves out what is not returned
        params = init_params(model, config.seed)
        return params if base is None else split(params, lora.is_new)[0]

    shardings = param_shardings(jax.eval_shape(new_leaves), model.config, mesh)
    new_leaves = jax.jit(new_leaves, out_shardings=shardings)
    if base is None:
        return new_leaves(), {}
    if config.adaptation.mode == "full":
        weights = base.read_params(config.streams.num_stream_layers, jnp.float32, mesh)
        if base.config_json is not None:
            text = to_json(base.config_json)
            distributed.first(lambda: write_atomic(workdir / "base_config.json", text))
        digest = fingerprint(weights)
        distributed.first(lambda: keep_origin(workdir, base.name, base.revision, digest))
        return merge(begun_heads(new_leaves(), weights), weights), {}
    frozen, _ = trained_lib.read_base(workdir, config, mesh=mesh)
    return begun_heads(new_leaves(), frozen), frozen


def begun_heads(new: Params, base: Params) -> Params:
    """Medusa heads, if there are any, begin as copies of the base's LM head, as published."""
    if "medusa_head" not in new:
        return new
    heads = new["medusa_head"]
    table = base.get("lm_head", base["embedder"])

    def copies(table):
        return jnp.broadcast_to(table.astype(heads.dtype), heads.shape)

    return new | {"medusa_head": jax.jit(copies, out_shardings=heads.sharding)(table)}


def _train(workdir, config, tokenizer, base, mesh, callbacks):
    """Trains or continues the run; returns its state, frozen weights and whether it is complete."""
    data = config.data
    task = get_task(data.task)
    shapes = {
        "max_prompt_length": data.max_prompt_length,
        "max_target_length": data.max_target_length,
    }
    model = trained_lib.make_model(config, tokenizer)
    _check_learned_positions(config)
    programs = make_train_programs(config, model, mesh)
    source = open_split(config, "train")
    trainable, frozen = starting_params(workdir, config, model, base, mesh)
    messages.say(parameter_line(model, trainable, frozen))
    with jax.set_mesh(mesh):
        state = programs.init(trainable)
    lengths = pipeline.describe(source, task, tokenizer, **shapes)
    messages.say(f"training data: {lengths}")
    messages.say_once(line_of_positions(config.model, lengths.max_kept))
    shapes |= {
        "batch_size": data.batch_size,
        "rows": partitioning.local_rows(mesh, data.batch_size),
    }
    batches = pipeline.train_batches(
        source,
        task,
        tokenizer,
        seed=config.seed,
        length_buckets=data.length_buckets,
        packing=data.packing,
        **shapes,
    )
    validation = pipeline.eval_batches(open_split(config, "validation"), task, tokenizer, **shapes)
    validation = [validation[i] for i in range(min(config.train.eval_batches, len(validation)))]
    kept, directory = config.checkpoint, workdir / "checkpoints"
    about = about_run(config, tokenizer)
    if (restored := checkpoint.restore(directory, state)) is not None:
        state, position = restored
        messages.say(f"continuing from step {position['next_batch']}")
    callbacks = [*keep_records(workdir), Display(), *callbacks] if distributed.is_first() else []
    reporter = Reporter(
        callbacks,
        num_steps=config.train.num_steps,
        log_every=config.train.log_every,
        schedule=optimizer.make_schedule(config.optimizer, config.train.num_steps),
        names=output_names(config.streams),
    )
    with Checkpoints(
        directory, keep_latest=kept.keep_latest, keep_best=kept.keep_best, about=about
    ) as checkpoints:
        state, complete = loop.train(
            config,
            programs,
            state,
            frozen,
            open_batches=lambda start: pipeline.train_iterator(batches, start),
            validation_batches=validation,
            checkpoints=checkpoints,
            reporter=reporter,
            profile_directory=workdir / "profile",
            tokenizer=tokenizer.files,
            config_values=config_lib.to_dict(config),
        )
    return state, frozen, complete


def parameter_line(model: Transformer, trainable: Params, frozen: Params) -> str:
    """How many parameters are the base's, how many the method adds, how many LoRA."""
    leaves = flatten(merge(trainable, frozen))
    sizes = {"base": 0, "embedding": 0, "init": 0, "exit": 0, "medusa": 0, "LoRA": 0}
    for name, leaf in leaves.items():
        path = tuple(name.split("/"))
        kind = "base"
        if lora.is_lora(path):
            kind = "LoRA"
        elif lora.is_new(path):
            kind = name.removeprefix("stream_").split("_")[0]
        sizes[kind] += leaf.size
    streams = model.streams
    if streams.medusa_heads:
        return (
            f"parameters: base {sizes['base']:,}; {streams.medusa_heads} Medusa heads "
            f"{sizes['medusa']:,}; LoRA {sizes['LoRA']:,}; trained {count(trainable):,}"
        )
    told_apart = "stream embeddings" if streams.variation == "embedding" else "rotated streams"
    parts = [f"{streams.num_streams} {told_apart} {sizes['embedding']:,}"]
    if streams.init_rank:
        parts.append(f"map to their start {sizes['init']:,}")
    parts.append(f"early-exit adapter {sizes['exit']:,}")
    return (
        f"parameters: base {sizes['base']:,}; Speculative Streaming "
        f"{sizes['embedding'] + sizes['init'] + sizes['exit']:,} ({', '.join(parts)}); "
        f"LoRA {sizes['LoRA']:,}; trained {count(trainable):,}; "
        f"streams in the top {streams.num_stream_layers} of {model.config.num_layers} layers"
    )


def line_of_positions(model: ModelConfig, num_tokens: int) -> str:
    """What there is to say of the longest training example; empty: nothing."""
    if model.positions != "rotary" or not 0 < model.max_positions < num_tokens:
        return ""
    return (
        f"training examples have up to {num_tokens} tokens, more than the {model.max_positions} "
        "positions that the model is made for (max_position_embeddings); lower "
        "data.max_prompt_length or data.max_target_length to cut them"
    )


def _check_learned_positions(config: Config) -> None:
    needed = config.data.max_prompt_length + config.data.max_target_length
    if config.model.positions == "learned" and needed > config.model.max_positions:
        raise UserError(
            f"config: data.max_prompt_length + data.max_target_length is {needed}, but the model "
            f"has positions for {config.model.max_positions}"
        )
