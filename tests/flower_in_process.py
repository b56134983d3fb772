"""Flower's messages without Flower's processes: every message is packed, unpacked and answered by a worker."""

from __future__ import annotations

from splitrank.federation.flower.payload import NO_FLOATS, pack, unpack
from splitrank.federation.flower.post import Reply
from splitrank.federation.flower.worker import Worker


class Post:
    """A post that has one worker of this process answer, node n standing for client n."""

    num_nodes = 3

    def __init__(self, grid: None) -> None:
        self.asked: set[int] = set()
        self.open: list[tuple[int, Reply]] = []
        self.worker = Worker(None)
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
