"""Slow links, each client's its own: as real as the machine allows.

netem
    Network namespaces, where the kernel gives rate and delay.
tbf and relays
    Network namespaces, where the kernel gives the rate, and relays on the server's side the delay.
throttled loopback
    No namespaces: relays that let bytes through at a rate and after a delay, each way on its own. All connections of a
    client share its link, as they would share a radio.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field

from tests.deployment.flower_processes import free_port
from tests.deployment.namespaces import Shape, namespaces

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

    host: str
    port: int
    target: int
    up: Way
    down: Way
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def carried_bytes(self) -> tuple[int, int]:
        """Bytes that have come in to go up and down."""
        return self.up.bytes, self.down.bytes

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

        return await asyncio.start_server(connected, self.host, self.port)


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
def relay(host: str, target: int, shape: Shape) -> Iterator[Relay]:
    """Run a relay on an address of this machine, in a thread of its own."""
    up, down = (Way(bps, shape.delay_s) for bps in (shape.up_bps, shape.down_bps))
    running = Relay(host, free_port(), target, up, down)

    server = running._loop.run_until_complete(running._serve())

    def work() -> None:
        asyncio.set_event_loop(running._loop)
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


@dataclass(frozen=True)
class Link:
    """A client's link.

    Attributes:
        kind: what makes it slow.
        host, port: where the client reaches the server.
        inside: what comes before the command that starts the client.
        carried_bytes: gives what it has carried up and down so far, TCP's payload.
    """

    kind: str
    host: str
    port: int
    inside: tuple[str, ...]
    carried_bytes: Callable[[], tuple[int, int]]


@contextmanager
def slow_links(port: int, shapes: Sequence[Shape]) -> Iterator[list[Link]]:
    """Links of these shapes to a port of this machine, whose address is the same for all clients."""
    with ExitStack() as held:
        try:
            spaces = held.enter_context(namespaces(shapes))
        except OSError as error:
            spaces, kind = [], f"throttled loopback, as namespaces cannot be had ({error})"
        links = []
        for client, shape in enumerate(shapes):
            if not spaces:
                way = held.enter_context(relay("127.0.0.1", port, shape))
                links.append(Link(kind, way.host, way.port, (), way.carried_bytes))
                continue
            space = spaces[client]
            if space.delayed:
                links.append(Link("netem", space.server, port, space.inside, space.carried_bytes))
            else:
                way = held.enter_context(relay(space.server, port, Shape(math.inf, math.inf, shape.delay_s)))
                links.append(Link("tbf and relays", way.host, way.port, space.inside, space.carried_bytes))
        yield links
