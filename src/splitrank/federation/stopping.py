"""When a run is finished before its last round: its target is reached, or its test accuracy rises no more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from splitrank.config import Config


def stop_reason(config: Config, accuracies: Sequence[float]) -> str | None:
    """Return in one sentence why no further round must be done; None where the run goes on.

    Patience is that of Keras's ``EarlyStopping``, with round 0 as the first best; Prechelt, "Early Stopping - But
    When?", 1998, compares such criteria.

    Args:
        config: the settings, of which ``federation.target_accuracy`` and ``federation.patience`` count.
        accuracies: of every round on record, round 0 first; not a number where nobody could tell it, which is neither
            a gain nor a round without one.
    """
    target, patience = config.federation.target_accuracy, config.federation.patience
    if target is not None and accuracies[-1] >= target:
        return f"Round {len(accuracies) - 1} reached federation.target_accuracy = {target:g}; the run is finished."
    told = [(accuracy, round) for round, accuracy in enumerate(accuracies) if not math.isnan(accuracy)]
    if patience is None or not told:
        return None
    best, best_round = max(told, key=lambda pair: pair[0])  # the first of equals
    if sum(round > best_round for _, round in told) < patience:
        return None
    return (
        f"The test accuracy has not risen above the {100 * best:.1f} % of round {best_round} for federation.patience = "
        f"{patience} rounds; the run is finished, and its result is that of round {len(accuracies) - 1}. To go on, "
        "resume it with a larger federation.patience."
    )
