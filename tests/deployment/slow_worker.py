"""A client's worker that in one round takes ten times as long as planned.

python tests/deployment/slow_worker.py CLIENT.toml
"""

from __future__ import annotations

from splitrank.federation.flower import local_client, worker
from splitrank.learning.client import Throttle

SLOW_ROUND = 2


class TenTimesAsLong(Throttle):
    def wait(self, started_s: float, share_done: float) -> None:
        slow = Throttle(10 * self.slowdown, 10 * self.planned_s, self.stop_at_s, self.rested_s)
        slow.wait(started_s, share_done)
        self.rested_s = slow.rested_s


def main() -> None:
    answer = worker.Worker.answer

    def slowly(self, header, floats):
        local_client.Throttle = TenTimesAsLong if header.get("round") == SLOW_ROUND else Throttle
        return answer(self, header, floats)

    worker.Worker.answer = slowly
    worker.main()


if __name__ == "__main__":
    main()
