"""The way to decode that a calibration found, read from calibration.json of a run.

One entry for each device, dtype, checkpoint step and batch size.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from ssjax.config import DecodeConfig, ranges
from ssjax.config.ranges import Range
from ssjax.decoding.drafters import BestFirstDrafter, Drafter, PlainDrafter, StaticDrafter, Way
from ssjax.decoding.tree import StaticTree
from ssjax.errors import UserError
from ssjax.files.reading import read_json_object

FILE = "calibration.json"

# Fields of `DecodeConfig` that say how to draft: who gives one of them wants no calibration.
DRAFTING_KEYS = frozenset(
    {
        "drafter",
        "draft_model",
        "tree",
        "num_nodes",
        "branching",
        "parents",
        "ranks",
        "num_streams",
        "lookup_nodes",
        "lookup_match",
        "kept_nodes",
        "exit_threshold",
        "min_node_chance",
        "deferred",
    }
)

_SWITCH_OFF = "--nocalibration for the settings of the run"


@dataclasses.dataclass(frozen=True)
class Situation:
    """What a calibration holds for, besides the batch size."""

    device: str  # kind; with their number, if there are several
    dtype: str  # of computation
    step: int  # of the checkpoint
    num_streams: int  # J of the model


def find(directory: Path, situation: Situation, batch_size: int) -> tuple[Way | None, str]:
    """The calibrated way to decode.

    Between two calibrated batch sizes the smaller one holds.

    Args:
      directory: of the run.
      situation: of the model that is to decode.
      batch_size: prompts decoded together.

    Returns:
      The way, or None if no calibration fits; and a line for the user, which is empty if
      there is none at all.
    """
    path = directory / FILE
    if not path.exists():
        return None, ""
    try:
        entries = read_entries(path)
        for field in dataclasses.fields(Situation):
            name, wanted = field.name, getattr(situation, field.name)
            there = sorted({entry[name] for entry in entries})
            entries = [entry for entry in entries if entry[name] == wanted]
            if not entries:
                return None, _ignored(path, name, there, wanted)
        smaller = [entry for entry in entries if entry["batch_size"] <= batch_size]
        if not smaller:
            there = sorted(entry["batch_size"] for entry in entries)
            return None, _ignored(path, "batch_size", there, batch_size)
        entry = max(smaller, key=lambda entry: entry["batch_size"])
        way = way_from_dict(entry["chosen"], situation.num_streams)
        line = f"calibrated: {entry['summary']!s:.300}; {_SWITCH_OFF}"
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ").removeprefix("config: ")
        return None, f"{path} ignored: {problem}; run ssjax.calibrate again"
    return way, line


def known(directory: Path, situation: Situation) -> tuple[dict[int, Way], dict[Drafter, float]]:
    """All that the calibrations of a run know; nothing where there is none that can be read.

    Args:
      directory: of the run.
      situation: of the model that is to decode.

    Returns:
      The chosen way by batch size, of this device and dtype; and tokens per call by drafter, of
      any of them, since what is accepted does not depend on that.
    """
    chosen, tokens = {}, {PlainDrafter(): 1.0}
    path = directory / FILE
    try:
        entries = read_entries(path) if path.exists() else []
        own = (situation.step, situation.num_streams)
        for entry in entries:
            if (entry["step"], entry["num_streams"]) != own:
                continue
            for each in (*entry.get("predicted", ()), *entry.get("candidates", ())):
                drafter = _drafter_from_dict(each["drafter"], situation.num_streams)
                tokens[drafter] = ranges.checked(each["tokens_per_call"], _TOKENS, "tokens")
            if (entry["device"], entry["dtype"]) == (situation.device, situation.dtype):
                chosen[entry["batch_size"]] = way_from_dict(entry["chosen"], situation.num_streams)
    except (UserError, KeyError, TypeError, AttributeError):
        return {}, {}  # `find` says what is wrong with it
    return chosen, tokens


def _ignored(path, name, there, wanted) -> str:
    made = f"{name.replace('_', ' ')} {', '.join(map(str, there))}"[:300]
    return f"{path} ignored: it is for {made}, not {wanted}; run ssjax.calibrate to have one"


_TOKENS = Annotated[float, Range(0.0, 1e6)]
_ENTRY = {
    "device": str,
    "dtype": str,
    "step": Annotated[int, Range(0)],
    "num_streams": Annotated[int, Range(0)],
    "batch_size": Annotated[int, Range(1)],
}


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, with checked keys. Raises: UserError."""
    entries = read_json_object(path).get("calibrations")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("not a calibration")
    for entry in entries:
        for name, hint in _ENTRY.items():
            ranges.checked(entry.get(name), hint, name)
        if not isinstance(entry.get("chosen"), dict) or not isinstance(entry.get("summary"), str):
            raise UserError("not a calibration")
    return entries


def describe(way: Way) -> str:
    """A way to decode in words."""
    if way.drafter.num_nodes == 1:
        return "plain decoding"
    kind = "static" if isinstance(way.drafter, StaticDrafter) else "best-first"
    nodes, streams = way.drafter.num_nodes - 1, way.drafter.num_streams
    order = "deferred" if way.deferred else "beside every node"
    least = getattr(way.drafter, "min_node_chance", 0.0)
    likely = f" of a chance of {least:g} or more" if least else ""
    return (
        f"{kind} tree of {nodes} node{'s' * (nodes != 1)}{likely}, {streams} "
        f"stream{'s' * (streams != 1)} {order}"
    )


def way_to_dict(way: Way) -> dict[str, Any]:
    """Plain values that `way_from_dict` accepts."""
    return {"drafter": drafter_to_dict(way.drafter), "deferred": way.deferred}


def way_from_dict(values: Mapping[str, Any], num_streams: int) -> Way:
    """A way to decode from plain values.

    Args:
      values: as `way_to_dict` makes them.
      num_streams: of the model.

    Raises:
      UserError: the values are no way to decode that model.
    """
    deferred = ranges.checked(values.get("deferred"), bool, "deferred")
    drafter = values.get("drafter")
    if not isinstance(drafter, dict):
        raise UserError("not a calibration")
    return Way(_drafter_from_dict(drafter, num_streams), deferred)


def drafter_to_dict(drafter: Drafter) -> dict[str, Any]:
    """Plain values of a drafter that a calibration may choose."""
    match drafter:
        case PlainDrafter():
            return {"kind": "plain"}
        case BestFirstDrafter(nodes, streams):
            shape = {"kind": "best_first", "nodes": nodes, "streams": streams}
        case StaticDrafter(tree, streams):
            parents, ranks = list(tree.parents), list(tree.ranks)
            shape = {"kind": "static", "parents": parents, "ranks": ranks, "streams": streams}
        case _:
            raise TypeError(f"{type(drafter).__name__} has no stored form")
    temperatures = list(drafter.temperatures)
    return shape | {"temperatures": temperatures, "min_node_chance": drafter.min_node_chance}


_TEMPERATURES = tuple[Annotated[float, Range(1e-3, 1e3)], ...]


def _drafter_from_dict(values: Mapping[str, Any], num_streams: int) -> Drafter:
    kind = values.get("kind")
    if kind == "plain":
        return PlainDrafter()
    hint = Annotated[int, Range(1, num_streams)]
    streams = ranges.checked(values.get("streams"), hint, "streams")
    fields = ranges.hints(DecodeConfig)
    # Files that are older than these keys have neither.
    temperatures = ranges.checked(values.get("temperatures", ()), _TEMPERATURES, "temperatures")
    if len(temperatures) not in (0, streams):
        raise UserError(f"{len(temperatures)} temperatures for {streams} streams")
    least = values.get("min_node_chance", 0.0)
    least = ranges.checked(least, fields["min_node_chance"], "min_node_chance")
    judged = {"temperatures": temperatures, "min_node_chance": least}
    if kind == "best_first":
        nodes = ranges.checked(values.get("nodes"), fields["num_nodes"], "nodes")
        return BestFirstDrafter(nodes, streams, **judged)
    if kind == "static":
        names = ("parents", "ranks")
        parts = [ranges.checked(values.get(name), fields[name], name) for name in names]
        try:
            return StaticDrafter(StaticTree(*parts), streams, **judged)
        except ValueError as error:
            raise UserError(str(error)) from None
    raise UserError(f"unknown drafter {kind!r:.80}")
