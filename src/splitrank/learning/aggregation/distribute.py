"""Distribute the global adapter: each client starts from it at its own rank; what is cut off is kept."""

from __future__ import annotations

from collections.abc import Mapping

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.factors import in_falling_order
from splitrank.learning.adapters.merged import add_merged
from splitrank.learning.adapters.method import Method
from splitrank.learning.aggregation.rule import Rule, Starts


def distribute(
    adapter: Adapter,
    ranks: Mapping[int, int],
    method: Method,
    rule: Rule,
    *,
    keeps_largest: bool,
    seed: int,
    round: int,
) -> Starts:
    """Resize the global adapter to the round's largest rank, and cut it for those who train at a smaller one.

    With one rank for all, every client starts from the same adapter. Otherwise a client gets the first directions of
    the whole, which ``"svd"`` has put into falling order, so that what it lacks is the whole's rest to the last bit.
    Where clients choose slices, all get the whole, at the rule's rank.

    Args:
        adapter: the global adapter after the last round.
        ranks: client → the rank that it trains at, at least 1; at least one client.
        method, rule: how ranks are changed.
        keeps_largest: keep the largest rank so far where this round's are smaller, as it is where each client has a
            rank of its own; with a common rank the adapter follows it down.
        seed, round: key of the streams of new directions.
    """

    largest = rule.global_rank or max(ranks.values())
    if keeps_largest:
        largest = max(largest, adapter.rank)
    distribution = rule.traits.distribution
    whole = method.resize(adapter, largest, distribution=distribution, seed=seed, round=round)
    if rule.prepare is not None:
        whole = rule.prepare(whole)
    if "slices" in rule.traits.tags:
        return Starts(whole, dict.fromkeys(ranks, whole))
    if distribution == "svd" and min(ranks.values()) < largest:
        whole = in_falling_order(whole)
    by_rank = {
        rank: method.resize(whole, rank, distribution="prefix", seed=seed, round=round) for rank in set(ranks.values())
    }
    return Starts(whole, {client: by_rank[rank] for client, rank in ranks.items()})


def merge_rest(adapter: Adapter, rank: int, method: Method, rule: Rule) -> Adapter:
    """Cut the global adapter to a smaller rank and put what is cut off into its merged parts.

    s·B·A = s·B'·A' + B_rest·A_rest, the rest being s·B and A beyond the first r directions: the model stays the same
    function. Directions without effect, whose column of B is zero, are let go of.

    Args:
        adapter: the global adapter.
        rank: r, at least 1 and below the adapter's.
        method, rule: how ranks are changed; with ``"svd"`` the largest directions stay, with ``"prefix"`` the first.
    """
    distribution = rule.traits.distribution
    whole = in_falling_order(adapter) if distribution == "svd" else adapter
    rest = {}
    for path, lora_A in whole.of_kind("lora_A").items():
        a, b = lora_A[rank:], whole.scaling * whole.tensors[f"lora_B/{path}"][:, rank:]
        has_effect = b.any(dim=0)
        rest[path] = a[has_effect], b[:, has_effect]
    # Nothing is drawn for fewer directions, so no stream is needed.
    kept = method.resize(whole, rank, distribution="prefix", seed=0, round=0)
    return add_merged(kept, rest)
