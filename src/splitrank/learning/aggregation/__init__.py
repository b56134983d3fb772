"""Aggregation rules, elsewhere aggregators or strategies: how adapters become one, one file a rule, and their table.

``rule`` (what a rule is, and weighted means) · ``distribute`` (from the global adapter to each client's start) ·
``slices`` (sums over clients of unequal ranks) · ``fedavg``, ``ffa``, ``flexlora``, ``fedex``, ``flora``, ``fedsvd``,
``raflora``, ``hetlora``, ``robust`` (median, trimmed mean) · ``truncated`` (a limit to merged parts) · ``rules`` (the
table).
"""
