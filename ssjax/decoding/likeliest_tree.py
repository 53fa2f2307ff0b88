"""Static trees from measured acceptance.

Acceptance of stream j and rank r is the share of positions at which the model's own token is
the r-th best of the stream. A node is worth the chance that it is accepted; its estimate here
is the product of acceptance[stream][rank] along its path, as in Medusa and Sequoia
(https://arxiv.org/abs/2401.10774, https://arxiv.org/abs/2402.12374). That takes the ranks of
the streams of one position to be independent, which they are not quite: a position that is
easy for one stream is easy for the next. How a tree really does is for a replay to say.
"""

import heapq
import itertools

import numpy as np

from ssjax.decoding.tree import NO_PARENT, StaticTree


def likeliest_static_tree(acceptance: np.ndarray, num_draft_nodes: int) -> StaticTree:
    """The tree with the highest expected number of accepted nodes.

    The product only falls along a path, so the best nodes are closed under ancestors and can
    be taken one by one. Among equals a lower depth, then the one found first.

    Args:
      acceptance: [J, K], shares by stream (from 0, of depth 1) and rank.
      num_draft_nodes: at most so many, the root not counted; nodes that were never accepted
        are left out.
    """
    acceptance = np.asarray(acceptance, np.float64)
    parents, ranks = [NO_PARENT], [0]
    found = itertools.count()
    frontier = []  # (-chance, depth, number, parent, rank)

    def reach(parent, depth, chance):
        if depth == len(acceptance):
            return
        for rank, share in enumerate(acceptance[depth]):
            if share > 0:
                entry = (-chance * float(share), depth + 1, next(found), parent, rank)
                heapq.heappush(frontier, entry)

    reach(0, 0, 1.0)
    while frontier and len(parents) <= num_draft_nodes:
        negative, depth, _, parent, rank = heapq.heappop(frontier)
        parents.append(parent)
        ranks.append(rank)
        reach(len(parents) - 1, depth, -negative)
    return StaticTree(tuple(parents), tuple(ranks))
