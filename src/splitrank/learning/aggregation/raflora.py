"""raFLoRA: Wu et al., "Preventing rank collapse in federated low-rank adaptation with client heterogeneity",
arXiv 2602.13486; on the factors, as RBLA, arXiv 2408.08699, averages them.

Clients train the first directions of one basis, as many as their rank. Each direction is averaged over those who have
it, rather than over all, so that no direction shrinks because others could not hold it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, is_ranked
from splitrank.learning.aggregation.fedavg import factor_averaging_error
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling
from splitrank.learning.aggregation.slices import mean_over_owners, owned_weights


def raflora(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average row j of A and column j of B over the clients that have them: θ_j = Σ_(i: r_i > j) w_i·θ_ij / Σ w_i.

    All start from one basis, so this is the start plus the mean of what its owners changed of it. At equal ranks it is
    ``fedavg``, and loses what that loses: the error is that of the mean, over its owners, of each direction's product.

    Args:
        starts: directions that nobody has trained this round keep the whole's values.
        updates: at least one, of any ranks.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    tensors = mean_of((name for name in whole.tensors if not is_ranked(name)), updates, weights)
    for name, start in whole.tensors.items():
        if is_ranked(name):
            tensors[name] = mean_over_owners(name, start, updates, weights)
    averaged = whole.with_tensors(tensors)
    owned = owned_weights(updates, weights, whole.rank)
    shares = {client: weights[client] / owned[: update.rank] for client, update in updates.items()}
    return Combined(averaged, {}, factor_averaging_error(updates, shares, averaged))
