"""A slow link on loopback: a relay that lets bytes through at a rate and after a delay, each way on its own.

It stands for Linux's netem, which not every kernel has. All connections of a client share its link, as they would share
a radio.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

_PIECE_BYTES = 4096


@dataclass
class Way:
    """One way of a link: bytes leave it at ``bps`` one after the other, ``delay_s`` after they came."""

    bps: float
    delay_s: float
    free_at_s: float = 0.0
    bytes: int = 0

    def leaves_at_s(self, now_s: float, length: int) -> float:
        self.bytes += length
        self.free_at_s = max(self.free_at_s, now_s) + 8 * length / self.bps
        return self.free_at_s + self.delay_s


@dataclass
class Relay:
    """A relay in front of a port of this machine; ``up`` is the way to that port."""

    port: int
    target: int
    up: Way
    down: Way
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def _stop(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.stop()

    async def _serve(self) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.CancelledError, OSError), closing(writer):
                there = await asyncio.open_connection("127.0.0.1", self.target)
                with closing(there[1]):
                    await asyncio.gather(_carry(reader, there[1], self.up), _carry(there[0], writer, self.down))

        return await asyncio.start_server(connected, "127.0.0.1", self.port)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
    loop = asyncio.get_running_loop()

    async def deliver() -> None:
        while True:
            leaves_s, piece = await on_the_way.get()
            await asyncio.sleep(max(0.0, leaves_s - loop.time()))
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        writer.close()

    delivering = asyncio.create_task(deliver())
    try:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                leaves_s = way.leaves_at_s(loop.time(), len(piece))
                await on_the_way.put((leaves_s, piece))
                # What has not left yet holds the sender up, as a full buffer of a slow link does.
                await asyncio.sleep(max(0.0, way.free_at_s - loop.time() - 0.05))
        await on_the_way.put((loop.time() + way.delay_s, b""))
        with suppress(OSError):
            await delivering
    finally:
        delivering.cancel()


@contextmanager
def relay(port: int, target: int, *, up_bps: float, down_bps: float, delay_s: float):
    """Run a relay in a thread of its own."""
    running = Relay(port, target, Way(up_bps, delay_s), Way(down_bps, delay_s))

    def work() -> None:
        asyncio.set_event_loop(running._loop)
        server = running._loop.run_until_complete(running._serve())
        running._loop.run_forever()
        server.close()
        running._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(running._loop), return_exceptions=True))
        running._loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running._loop.call_soon_threadsafe(running._stop)
        thread.join(5)
