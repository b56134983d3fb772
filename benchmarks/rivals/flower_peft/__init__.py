"""Federated averaging with Flower's simulation engine on Ray, whose clients train a PEFT model.

The clients train as ``expert`` in ``federated_peft`` does and evaluation happens on the server, so what differs from
that rival is the framework alone. Model and token ids are loaded once per Ray actor and kept.
"""
