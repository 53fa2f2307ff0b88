"""Trains a model, then compares plain and speculative decoding on held-out records.

    python -m ssjax.train --config experiments/dialogsum.py
    python -m ssjax.train --config experiments/dialogsum.py:small --config.data.path=DIR
    python -m ssjax.train --config FILE --config.optimizer.learning_rate=3e-4

A run lives in config.workdir. Ctrl-C or SIGTERM saves and exits with code 42; the same
command continues where the run was and ends with the same weights. A finished run is only
evaluated again.
"""

import json
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from ssjax import cli, report
from ssjax import config as config_lib
from ssjax import run as run_lib
from ssjax.config import Config
from ssjax.data import builders, pipeline
from ssjax.data.tasks import get_task
from ssjax.data.tokenizer import SentencePieceTokenizer, train_tokenizer
from ssjax.errors import UserError
from ssjax.files import write_atomic
from ssjax.models.parameters import count
from ssjax.training import loop, optimizer, step
from ssjax.training.checkpoint import Checkpoints
from ssjax.training.reporting import DivergenceError, Reporter

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, optionally with :variant.", lock_config=True
)
_JSON = flags.DEFINE_string("json", "", "Also write the evaluation to this file.")

# Groups of the config that decide the weights; a run continues only with the same ones.
_DECIDES_WEIGHTS = ("seed", "model", "streams", "loss", "optimizer", "data", "train")
_MAY_CHANGE = ("data.prepared_dir", "train.log_every", "train.eval_every", "train.eval_batches")


def main() -> int:
    """Runs the experiment of the command line; returns the exit code."""
    config = config_lib.from_config_dict(cli.experiment(_CONFIG))
    workdir = Path(config.workdir)
    claim_workdir(workdir, config)
    tokenizer = open_tokenizer(workdir, config)
    state, complete = train(workdir, config, tokenizer)
    if not complete:
        cli.say(f"stopped at step {int(state.step)}, saved; run the same command to continue")
        return cli.EXIT_RESUMABLE
    run = run_lib.open_run(workdir, int(state.step), config, tokenizer, state.params)
    evaluation = report.evaluate(run, config.eval.split, config.eval.max_records)
    cli.write_json(str(workdir / "evaluation.json"), evaluation)
    cli.write_json(_JSON.value, evaluation)
    report.show(evaluation)
    return 0


def claim_workdir(workdir: Path, config: Config) -> None:
    """Writes config.json, or checks that the run which is there has the same weights' settings.

    Raises:
      UserError: the directory holds another run; names the first differing key.
    """
    path = workdir / "config.json"
    if path.exists():
        here, now = (_flat(config_lib.to_dict(c)) for c in (run_lib.read_config(workdir), config))
        for key, value in now.items():
            decides = key.split(".")[0] in _DECIDES_WEIGHTS and key not in _MAY_CHANGE
            if decides and here[key] != value:
                raise UserError(
                    f"{workdir} holds a run with {key}={here[key]!r}, not {value!r}; choose "
                    "another --config.workdir, or give that value to continue the run"
                )
    write_atomic(path, json.dumps(config_lib.to_dict(config), indent=2) + "\n")


def open_tokenizer(workdir: Path, config: Config) -> SentencePieceTokenizer:
    """The run's tokenizer: kept from before, read from a file, or trained on the training split."""
    path = workdir / "tokenizer.model"
    if path.exists():
        return SentencePieceTokenizer.from_file(path)
    if config.data.tokenizer:
        tokenizer = SentencePieceTokenizer.from_file(config.data.tokenizer)
    else:
        task = get_task(config.data.task)
        source = open_split(config, "train")
        cli.say(f"training a tokenizer of {config.data.tokenizer_vocab_size} pieces")
        texts = pipeline.tokenizer_texts(source, task, config.data.tokenizer_records)
        tokenizer = train_tokenizer(texts, config.data.tokenizer_vocab_size, symbols=task.symbols)
    tokenizer.save(path)
    return tokenizer


def open_split(config: Config, split: str):
    """The records of a split, prepared on first use."""
    data = config.data
    return builders.open_source(data.task, data.path, data.prepared_dir, config.seed, split)


def train(workdir: Path, config: Config, tokenizer: SentencePieceTokenizer):
    """Trains or continues the run; returns its state and whether it is complete."""
    data = config.data
    task = get_task(data.task)
    shapes = {
        "max_prompt_length": data.max_prompt_length,
        "max_target_length": data.max_target_length,
    }
    model = run_lib.make_model(config, tokenizer.vocab_size)
    adamw = optimizer.make_optimizer(config.optimizer, config.train.num_steps)
    state = jax.jit(lambda: step.init_state(run_lib.init_params(model, config.seed), adamw))()
    frozen = {}
    source = open_split(config, "train")
    cli.say(_parameter_line(model, state.params))
    cli.say(f"training data: {pipeline.describe(source, task, tokenizer, **shapes)}")
    batches = pipeline.train_batches(
        source, task, tokenizer, batch_size=data.batch_size, seed=config.seed, **shapes
    )
    validation = pipeline.eval_batches(
        open_split(config, "validation"), task, tokenizer, batch_size=data.batch_size, **shapes
    )
    validation = [validation[i] for i in range(min(config.train.eval_batches, len(validation)))]
    steps = loop.CompiledSteps(
        train=jax.jit(
            step.make_train_step(
                model,
                adamw,
                config.loss,
                num_anchors=data.max_target_length,
                accumulation=config.train.accumulation,
            ),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            step.make_eval_step(model, config.loss, num_anchors=data.max_target_length)
        ),
    )
    kept = config.checkpoint
    with Checkpoints(
        workdir / "checkpoints", keep_latest=kept.keep_latest, keep_best=kept.keep_best
    ) as checkpoints:
        if checkpoints.latest_step is not None:
            state, position = checkpoints.restore(state)
            cli.say(f"continuing from step {position['next_batch']}")
        with Reporter(
            workdir,
            start_step=int(state.step),
            num_steps=config.train.num_steps,
            log_every=config.train.log_every,
            schedule=optimizer.make_schedule(config.optimizer, config.train.num_steps),
        ) as reporter:
            try:
                return loop.train(
                    config,
                    steps,
                    state,
                    frozen,
                    open_batches=lambda start: pipeline.train_iterator(batches, start),
                    validation_batches=validation,
                    checkpoints=checkpoints,
                    reporter=reporter,
                    tokenizer=tokenizer.model_bytes,
                    config_values=config_lib.to_dict(config),
                )
            except DivergenceError as error:
                raise UserError(str(error)) from None


def _parameter_line(model, params) -> str:
    streams = params.get("stream_embedding")
    extra = 0 if streams is None else streams.size
    return (
        f"{count(params):,} parameters, {extra:,} of them for {model.streams.num_streams} streams "
        f"in the top {model.streams.num_stream_layers} of {model.config.num_layers} layers"
    )


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


if __name__ == "__main__":
    cli.restart_with_huge_pages()
    cli.run(main)
