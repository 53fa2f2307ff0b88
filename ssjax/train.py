"""Trains a model, then compares plain and speculative decoding on held-out records.

    python -m ssjax.train --config experiments/dialogsum.py
    python -m ssjax.train --config experiments/dialogsum.py:small --config.data.path=DIR
    python -m ssjax.train --config FILE --config.optimizer.learning_rate=3e-4

    python -m ssjax.train --config FILE --config.mesh.fsdp=4 --config.mesh.tensor=2

A run lives in config.workdir. Ctrl-C or SIGTERM saves and exits with code 42; the same
command continues where the run was and ends with the same weights. A finished run is only
evaluated again. On several hosts the same command runs on each, see docs/launch.md: a signal
to any of them stops all at the same step, and a run continues on other hosts and meshes.
"""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from ssjax import cli, distributed, messages, partitioning, report
from ssjax import config as config_lib
from ssjax import run as run_lib
from ssjax import trained as trained_lib
from ssjax.claim import about_run, check_workdir, claim_workdir
from ssjax.config import Config, ModelConfig
from ssjax.data import pipeline
from ssjax.data.choice import choose_tokenizer, open_split
from ssjax.data.tasks import get_task
from ssjax.data.tokenizer import Tokenizer, open_tokenizer
from ssjax.errors import UserError
from ssjax.files import make_directory, to_json, write_atomic
from ssjax.models import lora
from ssjax.models.axes import param_shardings
from ssjax.models.parameters import Params, count, fingerprint, flatten, merge, split
from ssjax.models.transformer import Transformer, init_params
from ssjax.pretrained import Base, keep_origin, open_base, read_base_config, resolve
from ssjax.programs import make_train_programs
from ssjax.trained import Trained
from ssjax.training import checkpoint, interruption, lock, loop, optimizer
from ssjax.training.checkpoint import Checkpoints
from ssjax.training.losses import output_names
from ssjax.training.reporting import Reporter

_CONFIG = cli.define_experiment_flag()
_JSON = cli.define_output("json", "Also write the evaluation to this file.")
_DISTRIBUTED = distributed.define_flag()
flags.adopt_module_key_flags(cli)  # so that --help lists them


def main() -> int:
    """Runs the experiment of the command line; returns the exit code."""
    config = cli.experiment(_CONFIG)
    if config.compilation_cache:
        make_directory(config.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    distributed.initialize(_DISTRIBUTED.value)
    messages.speak(distributed.is_first())
    workdir = Path(config.workdir)
    with contextlib.ExitStack() as held:
        try:
            distributed.first(lambda: held.enter_context(lock.hold(workdir)))
            return run(workdir, config)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            code = cli.EXIT_INTERRUPTED if interrupted else getattr(error, "exit_code", 1)
            interruption.end_within(10, code)
            raise


def run(workdir: Path, config: Config) -> int:
    """Trains and evaluates in a directory that no other run writes to; returns the exit code."""
    base = None
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
    state, frozen, complete = train(workdir, config, tokenizer, base, mesh)
    if not complete:
        messages.say(f"stopped at step {int(state.step)}, saved; run the same command to continue")
        return cli.EXIT_RESUMABLE
    base_config = read_base_config(workdir)
    trained = Trained(
        workdir, int(state.step), config, tokenizer, state.params, frozen, base_config
    )
    # The settings of the config, so that evaluations of equal configs can be compared.
    evaluation = report.evaluate(
        run_lib.open_run(trained, mesh), config.eval.split, config.eval.max_records,
        calibration=False,
    )  # fmt: skip
    if distributed.is_first():
        cli.write_json(str(workdir / "evaluation.json"), evaluation)
        cli.write_json(_JSON.value, evaluation)
        report.show(evaluation)
    return 0


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


def train(workdir: Path, config: Config, tokenizer: Tokenizer, base: Base | None, mesh: Mesh):
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
    with (
        Checkpoints(
            directory, keep_latest=kept.keep_latest, keep_best=kept.keep_best, about=about
        ) as checkpoints,
        Reporter(
            workdir,
            start_step=int(state.step),
            num_steps=config.train.num_steps,
            log_every=config.train.log_every,
            schedule=optimizer.make_schedule(config.optimizer, config.train.num_steps),
            names=output_names(config.streams),
            quiet=not distributed.is_first(),
        ) as reporter,
    ):
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


if __name__ == "__main__":
    cli.restart_with_huge_pages()
    cli.run(main)
