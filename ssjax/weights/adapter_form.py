"""One form for the adapters of many tasks, so that they can lie on one axis of every array.

The form has the largest rank of each part; what an adapter has less of is filled with zeros, which
adds nothing to any sum. LoRA goes where it belongs:

    adapter     in a lossless form   in a detached form
    lossless    lora                 stream_lora
    detached    -                    lora, stream_lora
    shared      -                    lora  (stream rows read it too, and add nothing)

The form's alpha is its rank: the scale of each adapter is multiplied into its lora_b.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ssjax.config import AdaptationConfig, Config, StreamsConfig
from ssjax.errors import UserError
from ssjax.models.lora import is_lora, is_new
from ssjax.models.parameters import Params, flatten, split, unflatten
from ssjax.models.transformer import Transformer, abstract_params

_RANKS = ("init_rank", "parent_rank", "root_rank", "exit_rank")
_START_WITH = "name it with --adapter when the server starts, which then makes room for it"


@dataclasses.dataclass(frozen=True)
class AdapterForm:
    """What a model with adapters is made of besides its base."""

    streams: StreamsConfig
    adaptation: AdaptationConfig


def common_form(configs: Mapping[str, Config]) -> AdapterForm:
    """The smallest form that holds all of these adapters, one at least.

    Args:
      configs: by the name for messages.

    Raises:
      UserError: two of them cannot be run by one program.
    """
    found = list(configs.values())
    # Of one with streams, if there is one: what has none fits.
    streams = max((config.streams for config in found), key=lambda each: each.num_streams)
    ranks = {name: max(_rank(each.streams, name) for each in found) for name in _RANKS}
    with_lora = [each.adaptation for each in found if each.adaptation.mode != "full"]
    adaptation = AdaptationConfig()
    if with_lora:
        of_main_rows = any(each.mode != "lossless" for each in with_lora)
        rank, used = max(each.rank for each in with_lora), {t for a in with_lora for t in a.targets}
        adaptation = AdaptationConfig(
            mode="detached" if of_main_rows else "lossless",
            rank=rank,
            alpha=float(rank),
            targets=tuple(name for name in AdaptationConfig().targets if name in used),
        )
    form = AdapterForm(dataclasses.replace(streams, **ranks), adaptation)
    for name, config in configs.items():
        check_fits(config, form, name)
    return form


def check_fits(config: Config, form: AdapterForm, where: str) -> None:
    """Whether an adapter can be brought into a form.

    Raises:
      UserError: not so; says what differs.
    """
    ours, theirs = form.streams, config.streams
    if theirs.main_reads_streams or theirs.medusa_heads:
        kind = "Medusa heads" if theirs.medusa_heads else "streams that main rows read"
        raise UserError(f"{where} has {kind}, which adapters cannot have here")
    for name, words in (("num_stream_layers", "stream layers"), ("num_streams", "streams")):
        own, other = getattr(ours, name), getattr(theirs, name)
        if other != own and (name, other) != ("num_streams", 0):
            raise UserError(f"{where} has {other} {words}, but those served here have {own}")
    if theirs.num_streams and _kind(theirs) != _kind(ours):
        raise UserError(
            f"{where} has streams of another kind (variation, rotation_length or draft_tokens of "
            "its config) than those served here"
        )
    for name in _RANKS:
        own, other = _rank(ours, name), _rank(theirs, name)
        if other > own:
            raise UserError(
                f"{where} has a larger {name} ({other}) than there is room for ({own}); "
                f"{_START_WITH}"
            )
    lora = config.adaptation
    if lora.mode == "full":
        return
    room = form.adaptation
    if lora.mode != "lossless" and room.mode != "detached":
        raise UserError(f"{where} has LoRA of main rows, for which there is no room; {_START_WITH}")
    if room.mode == "full" or lora.rank > room.rank or not set(lora.targets) <= set(room.targets):
        raise UserError(f"{where} has LoRA of a larger rank or more targets; {_START_WITH}")


def check_leaves(leaves: Params, model: Transformer, where: str) -> None:
    """Whether these are what an adapter of a model has, in all their sizes, and finite.

    Args:
      leaves: NumPy arrays.
      model: of the adapter's own config, scanned.

    Raises:
      UserError: another leaf, another size, or a value that is not finite.
    """
    wanted = {name: leaf.shape for name, leaf in flatten(_new_leaves(model)).items()}
    found = {name: leaf.shape for name, leaf in flatten(leaves).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{where} does not fit its config: parameter {name} is {found.get(name)} there and "
                f"{wanted.get(name)} by the config; export it again"
            )
    for name, leaf in flatten(leaves).items():
        if not np.isfinite(leaf).all():
            raise UserError(
                f"{where}: parameter {name} holds a value that is not a finite number; export it "
                "again"
            )


def fitted(leaves: Params, config: Config, form: AdapterForm, model: Transformer) -> Params:
    """The leaves of an adapter in a form, NumPy arrays in float32.

    Args:
      leaves: NumPy arrays of the scanned form, those of its config.
      config: of the adapter, which fits.
      form: see above.
      model: of the form, scanned.
    """
    filled = {
        name: np.zeros(leaf.shape, np.float32) for name, leaf in flatten(_new_leaves(model)).items()
    }
    lora = config.adaptation
    moved = lora.mode == "lossless" and form.adaptation.mode == "detached"
    for name, leaf in flatten(leaves).items():
        *owner, last = name.split("/")
        if is_lora((last,)):
            scale = lora.alpha / lora.rank if last.endswith("_b") else 1.0
            leaf = leaf * np.float32(scale)
            last = f"stream_{last}" if moved else last
        filled["/".join((*owner, last))][tuple(slice(size) for size in leaf.shape)] = leaf
    return unflatten(filled)


def _rank(streams: StreamsConfig, name: str) -> int:
    """Of a part that the model has; without streams there are no corrections of them."""
    of_streams = name in ("parent_rank", "root_rank")
    return 0 if of_streams and not streams.num_streams else getattr(streams, name)


def _kind(streams: StreamsConfig) -> tuple:
    return streams.variation, streams.rotation_length, streams.draft_tokens


def _new_leaves(model: Transformer) -> Params:
    return split(abstract_params(model), is_new)[0]
