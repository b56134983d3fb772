"""Aggregation rules: how the clients' adapters become one, one file a rule, and their table.

``rule`` (what a rule is, and weighted means) · ``distribute`` (from the global adapter to each client's start) ·
``fedavg``, ``ffa``, ``flexlora`` · ``rules`` (the table).
"""
