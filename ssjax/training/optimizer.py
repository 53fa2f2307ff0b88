"""AdamW with clipping, linear warm-up and the learning rate after it."""

import jax
import optax

from ssjax.config import AdaptationConfig, OptimizerConfig
from ssjax.models import lora
from ssjax.models.parameters import merge, split


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear up to the peak, then as `config.decay` says.

    The last value, at `num_steps`, is that after the last step, which no step has.
    """
    warmup_steps = min(config.warmup_steps, num_steps - 1)
    peak, final = config.learning_rate, config.final_learning_rate
    if config.decay == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=peak,
            warmup_steps=warmup_steps,
            decay_steps=num_steps,
            end_value=final,
        )
    falling = {
        "constant": 0,
        "linear": num_steps - warmup_steps,
        "wsd": min(max(round(config.decay_share * num_steps), 1), num_steps - warmup_steps),
    }[config.decay]
    parts = [optax.linear_schedule(0.0, peak, warmup_steps), optax.constant_schedule(peak)]
    ends = [warmup_steps]
    if falling:
        parts.append(optax.linear_schedule(peak, final, falling))
        ends.append(num_steps - falling)
    return optax.join_schedules(parts, ends)


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
