"""Additions to a round that go with any aggregation rule, on the client or around the rule.

``proximal`` (a pull of local training towards its start) · ``server_optimizer`` (a rule's result as a gradient).
"""
