"""A client's worker that in one round takes ten times as long as planned.

python tests/deployment/slow_worker.py CLIENT.toml
"""

from __future__ import annotations

import sys
from pathlib import Path

from splitrank.federation.flower import line, worker
from splitrank.federation.flower.own_settings import read_own_settings
from splitrank.learning.client import Pace

SLOW_ROUND = 2


class TenTimesAsLong(Pace):
    def keep(self, started_s: float, share_done: float) -> None:
        slow = Pace(10 * self.slowdown, 10 * self.planned_s, self.stop_at_s, self.rested_s)
        slow.keep(started_s, share_done)
        self.rested_s = slow.rested_s


def main() -> None:
    own = read_own_settings(Path(sys.argv[1]))
    answering = worker.Worker(own)
    with line.listening(own.socket) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                header, floats = line.receive(connection)
                worker.Pace = TenTimesAsLong if header.get("round") == SLOW_ROUND else Pace
                line.send(connection, *answering.answer(header, floats))


if __name__ == "__main__":
    main()
