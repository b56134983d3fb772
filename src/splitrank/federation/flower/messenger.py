"""Messages to nodes, and their replies.

Flower's own ``send_and_receive`` looks for replies every three seconds only, and does not tell when each came.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Thread

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from splitrank.federation.flower.payload import Floats, Header, PayloadError, pack, unpack

_LOOK_EVERY_S = 0.1
_LOOK_FOR_ARRAYS_EVERY_S = 0.5
_MAX_THREADS = 16
_MAX_WAIT_S = 24 * 3600.0
_ASK_AGAIN_AFTER_S = 15.0

Request = tuple[Header, Floats]


def look_often() -> None:
    """Have Flower look every half second for an array that is on its way.

    Left alone it doubles its wait up to ten seconds, by which a round on a slow link is late. It has no setting for
    that, so the name by which its grid calls the function is given another one, the same but for the wait.
    """
    every_s = _LOOK_FOR_ARRAYS_EVERY_S
    often = partial(pull_objects, initial_backoff=every_s, backoff_cap=every_s, max_tries_per_object=None)
    vars(http_grid)["pull_objects"] = often


@dataclass(frozen=True, eq=False)
class Reply:
    """A node's answer and when it came [s after sending], or why there is none."""

    header: Header
    floats: Floats | None
    after_s: float

    @property
    def failure(self) -> str | None:
        """Why there is no answer to work with, None if there is one."""
        if self.header.get("kind") == "failure":
            return str(self.header.get("reason", "no reason given"))[:1000]
        return None


@dataclass(frozen=True, eq=False)
class Messenger:
    """The messages between the server and the nodes of a run.

    Attributes:
        asked: nodes that :meth:`ask` has sent something to, but for those to be asked again.
    """

    grid: Grid
    asked: set[int] = field(default_factory=set)
    _open: dict[str, tuple[int, float]] = field(default_factory=dict)
    _refused: dict[int, float] = field(default_factory=dict)

    def nodes(self) -> list[int]:
        """Nodes that are online."""
        return list(self.grid.get_node_ids())

    def ask(self, requests: Mapping[int, Request], message_type: str, *, group: str) -> None:
        """Send requests; :meth:`answers` returns their answers once they have come."""
        sent_s = time.monotonic()
        nodes = list(requests)
        for message_id, place in self._push(list(requests.items()), message_type, group, _MAX_WAIT_S).items():
            self._open[message_id] = (nodes[place], sent_s)
        self.asked.update(requests)

    def answers(self) -> Iterator[tuple[int, Reply]]:
        """Answers to :meth:`ask` that have come meanwhile."""
        for message_id, answer in self._pull(list(self._open)):
            node, sent_s = self._open.pop(message_id)
            yield node, _reply(answer, time.monotonic() - sent_s)
        for node, refused_s in list(self._refused.items()):
            if time.monotonic() - refused_s > _ASK_AGAIN_AFTER_S:
                self.asked.discard(node)
                del self._refused[node]

    def ask_again(self, node: int) -> None:
        """Let a node whose answer was of no use be asked again after a while."""
        self._refused[node] = time.monotonic()

    def exchange(
        self, requests: Sequence[tuple[int, Request]], message_type: str, *, group: str, wait_s: float
    ) -> list[Reply]:
        """Send requests and gather the answers.

        Args:
            requests: node and header with array of each; a node may get several, and answers them one by one.
            message_type: Flower's.
            group: what Flower's logs call the requests.
            wait_s: how long to wait for answers.

        Returns:
            an answer for every request, those that came too late or not at all being failures.
        """
        started_s = time.monotonic()
        places = self._push(requests, message_type, group, wait_s)
        replies: dict[int, Reply] = {}

        def gather(waiting: set[str]) -> None:
            while waiting and time.monotonic() - started_s < wait_s:
                for message_id, answer in self._pull(sorted(waiting)):
                    waiting.discard(message_id)
                    replies[places[message_id]] = _reply(answer, time.monotonic() - started_s)
                if waiting:
                    time.sleep(_LOOK_EVERY_S)

        # Flower announces an answer before its array is there and then waits for it: one slow uplink would hold up all.
        names = list(places)
        shares = [set(names[first::_MAX_THREADS]) for first in range(min(_MAX_THREADS, len(names)))]
        threads = [Thread(target=gather, args=(share,), daemon=True) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, started_s + wait_s + _LOOK_EVERY_S - time.monotonic()))
        late = _failure(f"no answer within {wait_s:.4g} s", time.monotonic() - started_s)
        come = dict(replies)
        return [come.get(place, late) for place in range(len(requests))]

    def _pull(self, message_ids: Sequence[str]) -> list[tuple[str, Message | Exception]]:
        """Return the answers that have come, by their request; an exception for one that Flower cannot read."""
        if not message_ids:
            return []
        try:
            return [(message.metadata.reply_to_message_id, message) for message in self.grid.pull_messages(message_ids)]
        except Exception as error:  # which one depends on what a hostile node has sent
            if len(message_ids) == 1:
                return [(message_ids[0], error)]
            return [answer for message_id in message_ids for answer in self._pull([message_id])]

    def _push(
        self, requests: Sequence[tuple[int, Request]], message_type: str, group: str, ttl_s: float
    ) -> dict[str, int]:
        """Send, and return the name of each message → its place among the requests."""
        messages = [
            Message(pack(*request), dst_node_id=node, message_type=message_type, ttl=ttl_s, group_id=group)
            for node, request in requests
        ]
        return {message_id: place for place, message_id in enumerate(self.grid.push_messages(messages)) if message_id}


def _failure(reason: str, after_s: float) -> Reply:
    return Reply({"kind": "failure", "reason": reason}, None, after_s)


def _reply(message: Message | Exception, after_s: float) -> Reply:
    if isinstance(message, Exception):
        return _failure(f"Flower cannot read the answer: {type(message).__name__}", after_s)
    if message.has_error():
        return _failure(f"Flower reports error {message.error.code}: {message.error.reason}", after_s)
    try:
        return Reply(*unpack(message.content), after_s)
    except PayloadError as error:
        return _failure(str(error), after_s)
