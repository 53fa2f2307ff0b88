"""How far drafts on given text are from drafts on the model's own: acceptance, two ways.

    teacher-forced   passes that would read the reference answers: at each place the drafter writes
                     its tree after the true text, and what follows there is taken for accepted
    decoded          the passes of the real decoder, which read what the model itself has said

Both are chains of passes, one starting where the one before ended, so that both count alike. What
training sees is the first, what speed comes from is the second: a model that is sure of its own
words has more of the second, one whose answers leave what it was trained on has less. Passes are
also parted by their context: how many tokens, of prompt and answer, are known when a pass starts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssjax.data.pipeline import encode_example
from ssjax.decoding.completion import Completion, check_finite
from ssjax.decoding.drafters import Drafter
from ssjax.decoding.request import make_request
from ssjax.evaluation.prompts import examples_of
from ssjax.evaluation.replay import Tokens, predict, replay
from ssjax.run import Run


@dataclasses.dataclass(frozen=True)
class Passes:
    """Decode passes over some texts, P of them."""

    context: np.ndarray  # [P] int, tokens known when the pass starts
    runs: np.ndarray  # [P] int, tokens emitted
    kept: np.ndarray  # [P] int, draft nodes among them
    max_depth: int  # of the drafter

    def of_context(self, least: int, most: int) -> "Passes":
        """Those that know so many tokens."""
        chosen = (self.context >= least) & (self.context <= most)
        return Passes(self.context[chosen], self.runs[chosen], self.kept[chosen], self.max_depth)

    def summary(self) -> dict[str, Any]:
        """Plain values; shares and tokens are 0 where there is no pass."""
        passes = len(self.runs)
        depths = range(1, self.max_depth + 1)
        return {
            "passes": passes,
            "tokens_per_call": int(self.runs.sum()) / max(passes, 1),
            "acceptance_by_depth": [
                int((self.kept >= depth).sum()) / max(passes, 1) for depth in depths
            ],
        }


def decoded_passes(prompts: Sequence[Tokens], completions: Sequence[Completion]) -> Passes:
    """The passes that made these completions of the prompts."""
    runs = [np.array(completion.runs, int) for completion in completions]
    context = [len(p) + np.cumsum(r)[:-1] for p, r in zip(prompts, runs, strict=True)]
    kept = [np.array(completion.kept, int) for completion in completions]
    depth = max((completion.max_depth for completion in completions), default=0)
    return Passes(_joined(context), _joined([r[1:] for r in runs]), _joined(kept), depth)


def forced_passes(
    run: Run, prompts: Sequence[Tokens], texts: Sequence[Tokens], drafter: Drafter
) -> Passes:
    """The passes that would make given texts of the prompts, if the model said just these.

    Args:
      run: a model with streams.
      prompts, texts: ids, at least one each.
      drafter: one that `replay` knows.
    """
    traces = replay(run.decoder, prompts, texts, [drafter])
    runs = [np.array(found, int) for found in predict(traces, 0).runs]
    roots = [np.cumsum(found) - found for found in runs]
    context = [len(p) + root + 1 for p, root in zip(prompts, roots, strict=True)]
    kept = [t.accepted[root, 0] for t, root in zip(traces, roots, strict=True)]
    return Passes(_joined(context), _joined(runs), _joined(kept), drafter.max_depth)


def compare_texts(run: Run, num_prompts: int) -> dict[str, Any] | None:
    """Both ways, on the first validation prompts; to be called by all processes.

    Args:
      run: whose decode settings say how to draft; a calibration is not looked at.
      num_prompts: at most.

    Returns:
      Plain values: prompts, and under teacher_forced, decoded and by_context (of doubling lengths)
      what `Passes.summary` gives. None where nothing can be compared: no prompts with an answer of
      two tokens, or a drafter that cannot be replayed (it needs Medusa heads, prunes, or has a
      model of its own).

    Raises:
      UserError: an output that is not finite, or that the model has no positions for.
    """
    decode, way = run.config.decode, run.configured_way(run.config.decode)
    if not num_prompts or not can_replay(way.drafter):
        return None
    prompts, references = _references(run, num_prompts)
    if not prompts:
        return None
    completions = run.decoder.generate(make_request(decode, prompts), way)
    for number, completion in enumerate(completions, start=1):
        check_finite(completion, number)
    finished = [run.finish(completion, decode.stop)[0] for completion in completions]
    both = {
        "teacher_forced": forced_passes(run, prompts, references, way.drafter),
        "decoded": decoded_passes(prompts, finished),
    }
    longest = max(int(passes.context.max(initial=0)) for passes in both.values())
    parts = []
    for least in (2**power for power in range(longest.bit_length())):
        inside = {name: p.of_context(least, 2 * least - 1).summary() for name, p in both.items()}
        if all(part["passes"] for part in inside.values()):
            parts.append({"from": least, "to": 2 * least - 1, **inside})
    summaries = {name: passes.summary() for name, passes in both.items()}
    return {"prompts": len(prompts), **summaries, "by_context": parts}


def can_replay(drafter: Drafter) -> bool:
    """Whether `replay` does what the drafter does in a pass."""
    prunes = drafter.kept_nodes > 0 or drafter.exit_threshold > 0
    return drafter.num_streams > 0 and not prunes


def lines(compared: dict[str, Any]) -> list[str]:
    """What `compare_texts` found, in two lines."""

    def pair(part, form=lambda summary: f"{summary['tokens_per_call']:.2f}"):
        return f"{form(part['teacher_forced'])} / {form(part['decoded'])}"

    by_depth = zip(
        *(compared[name]["acceptance_by_depth"] for name in ("teacher_forced", "decoded")),
        strict=True,
    )
    depths = ", ".join(f"{forced:.2f} / {own:.2f}" for forced, own in by_depth)
    parts = [f"{part['from']} to {part['to']}: {pair(part)}" for part in compared["by_context"]]
    return [
        f"drafts on the reference text / on its own, {compared['prompts']} validation prompts: "
        f"{pair(compared)} tokens per call, acceptance by depth {depths}",
        f"tokens per call by tokens of context: {', '.join(parts) or 'too few passes'}",
    ]


def _references(run: Run, num_prompts: int) -> tuple[list[Tokens], list[Tokens]]:
    """Prompts and reference answers as in training; an answer of one token needs no pass."""
    data = run.config.data
    longest = min(data.max_target_length, run.config.decode.max_new_tokens)
    pairs = []
    for example in examples_of(run, "validation", num_prompts):
        prompt, target = encode_example(
            example.record, run.task, run.tokenizer, data.max_prompt_length, longest
        )
        if len(target) > 1:
            pairs.append((prompt, target))
    return [prompt for prompt, _ in pairs], [target for _, target in pairs]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, int), *parts])
