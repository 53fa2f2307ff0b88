"""The words of the TPU compiler, as it wrote them."""

import pytest

from ssjax.planning.out_of_memory import NoRoom, no_room

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 32.50G of 15.75G hbm. "
            "Exceeded hbm capacity by 16.75G.",
            NoRoom(int(32.5 * GIB), False, "Used 32.50G of 15.75G hbm"),
        ),
        (
            "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (512.0M) exceeds "
            "available HBM (15.75G).",
            NoRoom(512 * 2**20, True, "(512.0M) exceeds available HBM (15.75G)"),
        ),
        ("RESOURCE_EXHAUSTED: too many programs", None),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_the_size_is_read_and_other_errors_are_left(text, expected):
    assert no_room(text) == expected
