"""A new run that begins with the weights of another one (`init_from`).

What the other run trained is taken, leaf by leaf; leaves that it did not have, such as those of
streams, begin as in any new run. Step, optimizer and data begin anew.
"""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from ssjax.config import Config
from ssjax.data.tokenizers.tokenizer import Tokenizer, open_tokenizer, same_tokens
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.reading import read_json_object
from ssjax.messages import say
from ssjax.models import lora
from ssjax.models.axes import placed
from ssjax.models.parameters import Params, flatten, unflatten
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.weights import checkpoint, load, saved_steps
from ssjax.weights.base import read_config


def inherited(
    config: Config, model: Transformer, tokenizer: Tokenizer, trainable: Params, mesh: Mesh
) -> Params:
    """The trainable parameters of a new run with those of `config.init_from` in their places.

    Args:
      config: of the new run, resolved.
      model: of the new run.
      tokenizer: of the new run.
      trainable: as they begin without the other run.
      mesh: that they are divided over.

    Raises:
      UserError: there is no such run, or its weights mean something else here.
    """
    source, workdir = places.of(config.init_from), places.of(config.workdir)
    before = read_config(source)
    step = saved_steps.find_step(source / "checkpoints", "latest", before.checkpoint.best_by)
    its_tokenizer = open_tokenizer(source)
    if not same_tokens(its_tokenizer, tokenizer):
        raise _refused(source, "its tokenizer is another one", f"data.tokenizer={source}")
    its_model = load.make_model(before, its_tokenizer)
    _check_model(source, its_model, model)
    if before.adaptation.mode != "full":
        bases = [read_json_object(place / "base.json") for place in (source, workdir)]
        if bases[0].get("fingerprint") != bases[1].get("fingerprint"):
            right = f"model.pretrained={bases[0].get('source')}"
            raise _refused(source, "it was trained on another base", right)
    theirs, _ = lora.split_trainable(abstract_params(its_model), before.adaptation)
    here = flatten(trainable)
    for name, leaf in flatten(theirs).items():
        if name not in here:
            raise _refused(
                source, f"it trained {name}, which is not trained here", "the same adaptation"
            )
        if leaf.shape != here[name].shape:
            raise _refused(
                source,
                f"its {name} has the shape {leaf.shape}, here {here[name].shape}",
                "the same streams and adaptation",
            )
    loaded = flatten(
        checkpoint.load_params(source / "checkpoints", step, placed(theirs, its_model.config, mesh))
    )
    say(
        f"weights of {source}, step {step}: {len(loaded)} of {len(here)} trained leaves; the "
        f"{len(here) - len(loaded)} others begin anew"
    )
    return unflatten(here | loaded)


def _check_model(source: Path, theirs: Transformer, here: Transformer) -> None:
    """Raises: UserError: another architecture; the dtype of products may differ."""
    for field in dataclasses.fields(theirs.config):
        before, now = (getattr(each.config, field.name) for each in (theirs, here))
        if field.name not in ("dtype", "max_positions") and before != now:
            raise _refused(
                source, f"its model.{field.name} is {before!r}, not {now!r}", "that value"
            )


def _refused(source: Path, reason: str, right: str) -> UserError:
    return UserError(f"init_from {source}: {reason}; give {right}, or take init_from away")
