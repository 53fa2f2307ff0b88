"""A seeded generator of dialogues and their summaries, in the form of DialogSum.

It makes every command runnable without a download, and it gives a small model a task it can
learn in minutes: who asks for what, what changes on the way, how it ends. The scenes are in
scenes.json, see `ssjax.data.scenes`. Scores on these records say nothing about the real data set.
"""

from collections.abc import Mapping

from ssjax.data import scenes
from ssjax.data.scenes import Dice, Scene
from ssjax.errors import UserError

SPLIT_SIZES = {"train": 2400, "validation": 200, "test": 200}

# Bounds that every record keeps: turns, and words as `str.split` counts them (the speaker label
# of a line is one of them).
TURNS = (5, 8)
DIALOGUE_WORDS = (45, 75)
SUMMARY_WORDS = (14, 26)

# Draws that are refused in a row before the scenes count as used up.
_PATIENCE = 2000


def generate(split_sizes: Mapping[str, int], seed: int) -> dict[str, list[dict[str, str]]]:
    """Makes records with the fields fname, dialogue, summary and topic.

    No dialogue and no summary occurs twice, neither within a split nor in two of them.

    Args:
      split_sizes: number of records of each split.
      seed: the same seed and sizes give the same records on every machine.

    Returns:
      For each split its records, in order; fname is "<split>_<number>".

    Raises:
      UserError: more records are asked for than there are distinct ones.
    """
    seen: set[str] = set()
    return {
        split: [
            {"fname": f"{split}_{number}", **_record(Dice(f"{seed}/{split}/{number}"), seen)}
            for number in range(size)
        ]
        for split, size in split_sizes.items()
    }


def _record(dice: Dice, seen: set[str]) -> dict[str, str]:
    """Draws scenes until one fits the bounds and is new; adds its texts to `seen`."""
    for _ in range(_PATIENCE):
        scene = scenes.play(dice.pick(*scenes.names()), dice)
        dialogue = "\n".join(
            f"#Person{1 + turn % 2}#: {line}" for turn, line in enumerate(scene.lines)
        )
        if _fits(scene, dialogue) and dialogue not in seen and scene.summary not in seen:
            seen.update((dialogue, scene.summary))
            return {"dialogue": dialogue, "summary": scene.summary, "topic": scene.topic}
    raise UserError(
        f"the sample generator ran out of new dialogues after {len(seen) // 2:,} records: "
        "ask for smaller splits"
    )


def _fits(scene: Scene, dialogue: str) -> bool:
    return (
        TURNS[0] <= len(scene.lines) <= TURNS[1]
        and DIALOGUE_WORDS[0] <= len(dialogue.split()) <= DIALOGUE_WORDS[1]
        and SUMMARY_WORDS[0] <= len(scene.summary.split()) <= SUMMARY_WORDS[1]
    )
