"""Entries of a benchmark, timed in turn on the same prompts: the result as plain values."""

from collections.abc import Sequence
from typing import Any

import jax

from ssjax import messages
from ssjax.config import DecodeConfig
from ssjax.decoding.drafters import PlainDrafter, Way
from ssjax.decoding.request import make_request
from ssjax.evaluation import speed
from ssjax.evaluation.benchmark_tables import describe, open_entry, quality
from ssjax.evaluation.prompts import Prompts
from ssjax.evaluation.speed import Entry
from ssjax.run import Run


def open_entries(run: Run, names: Sequence[str]) -> dict[str, Entry]:
    """Entries by name, plain decoding first; "calibrated" is chosen for each batch size later.

    Args:
      run: that is decoded.
      names: as --drafters of `ssjax.benchmark` has them.

    Raises:
      UserError: a drafter that is not known, or does not belong to the run.
    """
    entries = {"plain": Entry(run.decoder, Way(PlainDrafter(), True))}
    for name in names:
        if name != "plain":
            later = name == "calibrated"
            entries[name] = entries["plain"] if later else open_entry(run, name)
    return entries


def time_entries(
    run: Run,
    entries: dict[str, Entry],
    prompts: Prompts,
    decode: DecodeConfig,
    batch_sizes: Sequence[int],
) -> dict[str, Any]:
    """Times every entry at every batch size and scores its outputs.

    Args:
      run: that is decoded.
      entries: of `open_entries`.
      prompts: the same for all.
      decode: lengths, sampling and seed.
      batch_sizes: prompts decoded together.

    Returns:
      What was measured, where and on what; "rows": one for each entry and batch size.
    """
    rows = []
    for batch_size in batch_sizes:
        if "calibrated" in entries:
            calibrated = Entry(run.decoder, run.way({}, batch_size))
            entries = entries | {"calibrated": calibrated}
        request = make_request(decode, prompts.ids, batch_size=batch_size, accept="exact")
        batches = speed.time_ways(list(entries.values()), request)
        plain = batches[0]
        for (name, entry), own in zip(entries.items(), batches, strict=True):
            rows.append({"batch_size": batch_size, "drafter": name} | describe(entry, plain, own))
            if prompts.examples:
                rows[-1] |= quality(run, own, prompts.examples)
        messages.say(f"batch size {batch_size}: {len(prompts.ids)} prompts, {len(entries)} ways")
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "task": run.task.name,
        "prompts": len(prompts.ids),
        "source": prompts.source,
        "device": jax.devices()[0].device_kind,
        "dtype": run.dtype,
        "temperature": decode.temperature,
        "max_new_tokens": decode.max_new_tokens,
        "parameters": run.decoder.num_parameters,
        "rows": rows,
    }
