"""AdamW with clipping, linear warm-up and cosine or linear decay."""

import jax
import optax

from ssjax.config import AdaptationConfig, OptimizerConfig
from ssjax.models import lora
from ssjax.models.parameters import merge, split


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear up to the peak, then down to the final value."""
    warmup_steps = min(config.warmup_steps, num_steps - 1)
    if config.decay == "linear":
        down = num_steps - warmup_steps
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, config.learning_rate, warmup_steps),
                optax.linear_schedule(config.learning_rate, config.final_learning_rate, down),
            ],
            [warmup_steps],
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
        end_value=config.final_learning_rate,
    )


def make_optimizer(
    config: OptimizerConfig, num_steps: int, adaptation: AdaptationConfig | None = None
) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps.

    Args:
      config: its settings.
      num_steps: of the run, for the schedule.
      adaptation: in the detached mode the gradient of the model and that of what drafts are
        clipped by their own norms, so that neither changes the other's update. None: full.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        _apart(clip) if adaptation is not None and lora.is_detached(adaptation) else clip,
        optax.adamw(
            make_schedule(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=is_decayed,
        ),
    )


def _apart(clip):
    """A transformation without state for the adapter of main rows, and for all other leaves."""

    def update(gradient, state, params=None):
        parts = split(gradient, lora.is_of_main_rows)
        return merge(*(clip.update(part, state)[0] for part in parts)), state

    return optax.GradientTransformation(clip.init, update)


def is_decayed(params):
    """Tree of bools: projection matrices decay, norms and embeddings do not.

    Decided by name, since a norm of scanned layers has two axes like a matrix.
    """

    def decayed(path, _):
        names = [part.key for part in path]
        return names[-1] == "weight" and names[-2].endswith("_proj")

    return jax.tree_util.tree_map_with_path(decayed, params)
