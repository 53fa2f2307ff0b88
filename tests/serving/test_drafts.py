"""Trees that are shown: the used nodes, numbered anew, and the path that a pass kept."""

import numpy as np
import pytest

from ssjax.serving.drafts import Draft

#   the -+- cat -+- sat      an unused node stands between them
#        +- dog  +- ran
TREE = Draft(tokens=(10, 20, 30, 40, 50), parents=(-1, 0, 0, 1, 1))


def test_only_used_nodes_of_a_row_are_there():
    tokens = np.array([10, 20, 99, 30, 40, 50, 99], np.int32)
    parent = np.array([-1, 0, -1, 0, 1, 1, -1], np.int32)
    assert Draft.of_row(tokens, parent) == TREE
    assert Draft.of_row(tokens[:1], parent[:1]) == Draft((10,), (-1,))


@pytest.mark.parametrize(
    ("emitted", "kept"),
    [
        ([], [0]),
        ([30], [0, 2]),
        ([20], [0, 1]),
        ([20, 50], [0, 1, 4]),
    ],
)
def test_the_path_that_was_kept(emitted, kept):
    assert [node for node, on_path in enumerate(TREE.kept(emitted)) if on_path] == kept


def test_of_siblings_alike_the_one_that_goes_on():
    twins = Draft(tokens=(1, 2, 2, 3), parents=(-1, 0, 0, 2))
    assert twins.kept([2, 3]) == [True, False, True, True]
