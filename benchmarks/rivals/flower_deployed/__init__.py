"""Federated averaging with Flower's SuperLink and SuperNodes and a PEFT model, written as Flower's examples are.

``app`` is the whole app: the stock FedAvg strategy, and a ClientApp that loads the model, reads its texts and trains.
Flower starts a process for every message, so it does all of this in every round. It imports nothing of splitrank.
"""
