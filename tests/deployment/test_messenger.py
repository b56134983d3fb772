"""Promise: whatever one node answers, or does not, the answers of the others come through."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from splitrank.federation.flower import messenger
from splitrank.federation.flower.messenger import Messenger
from splitrank.federation.flower.payload import NO_FLOATS, pack

pytestmark = pytest.mark.extras


def test_an_array_on_its_way_is_noticed_soon():
    """Flower would look after 1, 3 and 7 s."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

    begun_s = time.monotonic()

    def pull(object_id: str) -> bytes:
        if time.monotonic() < begun_s + 4.0:
            raise ObjectUnavailableError(object_id)
        return b"here"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_grid, "pull_objects", None)
        messenger.look_often()
        of_the_grid = http_grid.HttpGrid.pull_messages.__globals__["pull_objects"]
        assert of_the_grid(["an array"], pull) == {"an array": b"here"}
    assert time.monotonic() < begun_s + 5.0


ECHO = ({"kind": "echo", "length": 0}, NO_FLOATS)


class Grid:
    """Nodes that answer at once, but for those that are silent, and those whose answer Flower cannot read."""

    def __init__(self, *, silent: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()) -> None:
        self.sent: list[int] = []
        self.silent, self.unreadable = silent, unreadable

    def push_messages(self, messages) -> list[str]:
        first = len(self.sent)
        self.sent += [message.metadata.dst_node_id for message in messages]
        return [str(place) for place in range(first, len(self.sent))]

    def pull_messages(self, message_ids) -> list[SimpleNamespace]:
        nodes = {message_id: self.sent[int(message_id)] for message_id in message_ids}
        if set(nodes.values()) & set(self.unreadable):
            raise ValueError("not a message")
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=message_id),
                has_error=lambda: False,
                content=pack({"kind": "echo", "node": node}),
            )
            for message_id, node in nodes.items()
            if node not in self.silent
        ]


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_one_bad_answer_spoils_no_other():
    nodes = range(1, 41)  # several to a line
    replies = Messenger(Grid(unreadable=(7,))).exchange(
        [(node, ECHO) for node in nodes], "query", group="", wait_s=10.0
    )
    assert [reply.header.get("node") for reply in replies] == [None if node == 7 else node for node in nodes]
    assert replies[6].failure == "Flower cannot read the answer: ValueError"


def test_who_is_silent_is_late():
    replies = Messenger(Grid(silent=(2,))).exchange([(1, ECHO), (2, ECHO)], "query", group="", wait_s=0.5)
    assert [reply.failure for reply in replies] == [None, "no answer within 0.5 s"]


def test_who_was_refused_is_asked_again_after_a_while(monkeypatch):
    grid = Grid(unreadable=(1,))
    sent = Messenger(grid)
    sent.ask({1: ECHO, 2: ECHO}, "query", group="")
    answers = dict(sent.answers())
    assert (answers[1].failure is None, answers[2].failure is None) == (False, True)
    sent.ask_again(1)
    list(sent.answers())
    assert sent.asked == {1, 2}
    monkeypatch.setattr(messenger, "_ASK_AGAIN_AFTER_S", 0.0)
    list(sent.answers())
    assert sent.asked == {2}
