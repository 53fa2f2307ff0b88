"""When a checkpoint is due, and when a run has waited long enough: histories made by hand."""

import math

import pytest

from ssjax.config import CheckpointConfig
from ssjax.training.policy import Patience, SaveClock, is_saved_by_steps


@pytest.mark.parametrize(
    ("save_every", "keep_every", "saved"),
    [
        (3, 0, [3, 6, 9, 12]),
        (0, 0, []),
        (0, 5, [5, 10]),
        (4, 6, [4, 6, 8, 12]),  # what is kept for ever is saved, too
    ],
)
def test_steps_that_are_saved(save_every, keep_every, saved):
    kept = CheckpointConfig(save_every=save_every, keep_every=keep_every)
    assert [step for step in range(1, 13) if is_saved_by_steps(kept, step)] == saved


def rings(minutes, seconds, saved_at=()):
    """The moments, of those in `seconds`, at which the clock says that a save is due."""
    now = 100.0
    clock = SaveClock(minutes, lambda: now)
    found = []
    for second in seconds:
        now = 100.0 + second
        if clock.rings():
            found.append(second)
        if second in saved_at:
            clock.restart()
    return found


def test_the_clock_rings_once_when_its_minutes_are_over():
    assert rings(2, [0, 60, 119, 120, 121, 239, 240, 250]) == [120, 240]
    assert rings(2, [100, 130, 290, 300]) == [130, 290]  # late: the next one counts from there
    assert rings(0.5, [29, 30, 31]) == [30]


def test_the_clock_counts_from_the_last_save_of_any_kind():
    assert rings(2, [60, 120, 179, 180], saved_at=[60]) == [180]


def test_no_minutes_no_saves():
    assert rings(0, [0, 1, 10**9]) == []


def ends_after(limit, merits):
    """The number of validations after which a run is over; None: it goes on."""
    patience = Patience(limit)
    for number, merit in enumerate(merits, start=1):
        patience = patience.after(merit)
        if patience.has_ended:
            return number
    return None


@pytest.mark.parametrize(
    ("limit", "merits", "ends"),
    [
        (0, [5, 4, 3, 2, 1], None),
        (1, [1, 2, 3], None),
        (1, [1, 2, 2], 3),  # as good is no gain
        (2, [-3, -2, -2.5, -1, -1.5, -1.2], 6),  # a gain in between begins anew
        (2, [3, 1, 2, 4], 3),  # better than the one before, but not than the best
        (2, [3, -math.inf, 2, -math.inf, -math.inf, 1], 6),  # not measured counts for nothing
        (2, [-math.inf, -math.inf, -math.inf], None),
    ],
)
def test_a_run_ends_after_so_many_validations_without_a_gain(limit, merits, ends):
    assert ends_after(limit, merits) == ends


def test_patience_goes_on_where_it_was_saved():
    merits = [1.0, 3.0, 2.0, 2.0]
    for cut in range(len(merits)):
        patience = Patience(3)
        for merit in merits[:cut]:
            patience = patience.after(merit)
        patience = Patience.continued(3, {"seed": 0, **patience.to_save()})
        for merit in merits[cut:]:
            patience = patience.after(merit)
        assert patience == Patience(3, best=3.0, waited=2)


def test_more_patience_lets_a_run_go_on():
    ended = Patience(2, best=1.0, waited=2)
    assert ended.has_ended
    assert not Patience.continued(3, ended.to_save()).has_ended
    assert not Patience.continued(0, ended.to_save()).has_ended


def test_a_checkpoint_of_an_older_version_has_waited_for_nothing():
    assert Patience.continued(2, {"seed": 0, "next_batch": 7}) == Patience(2)
