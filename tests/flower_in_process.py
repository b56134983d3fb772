"""Flower's messages without Flower's processes: every message is packed, unpacked and answered by a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from splitrank import Config, load_data
from splitrank.federation.flower import flower_clients
from splitrank.federation.flower.messenger import Reply
from splitrank.federation.flower.payload import NO_FLOATS, pack, unpack
from splitrank.federation.flower.worker import Worker
from splitrank.learning.aggregation.rule import Rule


class Messenger:
    """A messenger that has one worker of this process answer, node n standing for client n."""

    num_nodes = 3

    rule: Rule | None = None

    def __init__(self, grid: None) -> None:
        self.asked: set[int] = set()
        self.open: list[tuple[int, Reply]] = []
        self.worker = Worker(None, self.rule)
        self.sent: list[tuple[dict, int, dict, int]] = []

    def nodes(self):
        return list(range(self.num_nodes))

    def ask(self, requests, message_type, *, group):
        self.open = [(node, self.answer(node, *request)) for node, request in requests.items()]
        self.asked.update(requests)

    def answers(self):
        while self.open:
            yield self.open.pop()

    def exchange(self, requests, message_type, *, group, wait_s):
        return [self.answer(node, *request) for node, request in requests]

    def ask_again(self, node):
        self.asked.discard(node)

    def answer(self, node, header, floats=NO_FLOATS):
        header, floats = unpack(pack({**header, "client": node}, floats))
        told, back = unpack(pack(*self.worker.answer(header, floats)))
        self.sent.append((header, len(floats), told, len(back)))
        return Reply(told, back, after_s=1.0)


@contextmanager
def flower(
    kind: type[Messenger] = Messenger, rule: Rule | None = None
) -> Iterator[tuple[Callable[[Config], flower_clients.FlowerClients], list[Messenger]]]:
    """What connects a run to three nodes of this process, each time anew, and the messengers that it made.

    Args:
        kind: class of the messenger.
        rule: an aggregation rule of one's own, on both sides.
    """
    made: list[Messenger] = []

    def connect(config: Config) -> flower_clients.FlowerClients:
        data = load_data(config)
        clients = flower_clients.connect(None, config, data, tell_data=True, run_id="0" * 32, rule=rule)
        made.append(clients.messenger)
        return clients

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_clients, "Messenger", kind)
        patch.setattr(kind, "rule", rule)
        try:
            yield connect, made
        finally:
            for messenger in made:
                messenger.worker.close()
