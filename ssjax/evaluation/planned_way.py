"""The way to decode on a chip that is not here: drafts as measured, passes as they were planned.

Which drafts are kept does not depend on the device, so a calibration on any device tells it. The
seconds of a pass on the chip come from a plan. Both together choose a tree as a calibration there
would, until there is one: that replaces what was planned.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.decoding.ways import FILE, Situation, read_entries, way_from_dict
from ssjax.errors import UserError
from ssjax.evaluation.best_way import Calibration, Candidate, candidate_values, store, summary

PLANNED = "planned"  # key of an entry that no device was asked for


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a calibration of a run found about drafts, whatever the device."""

    entry: Mapping[str, Any]  # as the file holds it
    tokens_per_call: Mapping[Way, float]  # by tree, all of one width

    @property
    def node_counts(self) -> list[int]:
        """Nodes of the best-first trees, the root included, rising."""
        drafters = [way.drafter for way in self.tokens_per_call]
        return sorted({d.num_nodes for d in drafters if isinstance(d, BestFirstDrafter)})


def read_measured(directory: Path, num_streams: int, deferred: bool) -> Measured:
    """The newest calibration of a run that was made on a device.

    Args:
      directory: of the run.
      num_streams: of its model.
      deferred: when streams are to run.

    Raises:
      UserError: there is none.
    """
    path = directory / FILE
    if not path.exists():
        raise UserError(f"{path} does not exist; run python -m ssjax.calibrate --workdir first")
    fitting = [
        entry
        for entry in read_entries(path)
        if entry["num_streams"] == num_streams and PLANNED not in entry and "predicted" in entry
    ]
    if not fitting:
        raise UserError(f"{path} has no calibration of this model; run ssjax.calibrate again")
    entry = max(fitting, key=lambda entry: (entry["step"], -entry["batch_size"]))
    found = {}
    try:
        for each in entry["predicted"]:
            way = way_from_dict({**each, "deferred": deferred}, num_streams)
            if len(way.drafter.widths) == 1:  # of several, how often each is taken is not kept
                found[way] = float(each["tokens_per_call"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} ignored: {error!r:.80}; run ssjax.calibrate again") from None
    return Measured(entry, found)


def choose(measured: Measured, seconds: Mapping[int, float], batch_size: int) -> Calibration:
    """The candidates with the passes of a plan, and with them the best one.

    A tree between two planned numbers of nodes is taken to cost what lies between; others are left
    out.

    Args:
      measured: drafts of the run.
      seconds: of a pass of the batch by number of nodes, the root included; 1 is plain decoding.
      batch_size: rows of the batch.

    Raises:
      UserError: no tree lies within the planned numbers.
    """
    planned = sorted(seconds)
    times = [seconds[nodes] for nodes in planned]
    drafting = [
        Candidate(way, tokens, float(np.interp(way.drafter.num_nodes, planned, times)), batch_size)
        for way, tokens in measured.tokens_per_call.items()
        if way.drafter.num_nodes <= planned[-1]
    ]
    if not drafting:
        few = ", ".join(map(str, measured.node_counts))
        raise UserError(f"the run was calibrated with trees of {few} nodes; give some to --nodes")
    plain = Way(PlainDrafter(), drafting[0].way.deferred)
    return Calibration(batch_size, (Candidate(plain, 1.0, seconds[1], batch_size), *drafting))


def keep(
    directory: Path, measured: Measured, calibration: Calibration, device: str, dtype: str, by: str
) -> str:
    """Stores what was chosen beside the run, unless the device was calibrated; returns a line.

    Args:
      directory: of the run.
      measured, calibration: as `read_measured` and `choose` return them.
      device: as the run will call it there.
      dtype: of computation there.
      by: what was planned, such as the topology.
    """
    entry = measured.entry
    situation = Situation(device, dtype, entry["step"], entry["num_streams"])
    key = {**dataclasses.asdict(situation), "batch_size": calibration.batch_size}
    for other in read_entries(directory / FILE):
        same = all(other[name] == value for name, value in key.items())
        if same and PLANNED not in other:
            return f"not kept: {directory / FILE} has a calibration made on {device}"
    planned = {
        **key,
        "summary": f"chosen from a plan, {by}, passes as the compiler predicts them: "
        + summary(calibration),
        PLANNED: by,
        "prompts": entry.get("prompts"),
        "prompt_length": entry.get("prompt_length"),
        "accepted_on": entry["device"],
        "chosen": candidate_values(calibration.chosen),
        "candidates": [candidate_values(candidate) for candidate in calibration.candidates],
    }
    path = store(directory, [planned])
    return f"kept in {path} for {device}, until it is calibrated there"
