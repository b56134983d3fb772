"""Flower's real processes on loopback, for scripts that measure a deployment: ports, logs, an end to all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

# No reports home, no look for a newer version, no installation of packages when an app starts.
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

BIN = Path(sys.executable).parent
_MARK = "SPLITRANK_BENCHMARK"
_END_S = 10.0


@dataclass
class Processes:
    """Processes of one federation, each with a log in ``folder/logs``.

    Their environment is this process's without what it says to Flower, so that what is measured is what the scripts
    and options say. It also names the folder, by which whatever they start in turn is found at the end.
    """

    folder: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str | Path, **environment: str) -> None:
        """Start a process and leave it running."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
        path = f"{BIN}{os.pathsep}{inherited.get('PATH', '')}"
        with self._log_file(name).open("wb") as log:
            self.started[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, **SWITCHES, "PATH": path, _MARK: str(self.folder), **environment},
                start_new_session=True,
            )

    def run(self, name: str, *command: str | Path, max_s: float, **environment: str) -> None:
        """Start a process and wait for its end.

        Raises:
            RuntimeError: it failed or took too long.
        """
        self.start(name, *command, **environment)
        self.wait_for(lambda: self.started[name].poll() is not None, max_s, f"the end of {name}")
        if self.started[name].returncode != 0:
            raise RuntimeError(f"{name} ended with {self.started[name].returncode}:\n{self._logs()}")

    def wait_for(self, condition: Callable[[], bool], max_s: float, what: str) -> None:
        """Wait for a condition.

        Raises:
            RuntimeError: it did not come.
        """
        ends_s = time.monotonic() + max_s
        while not condition():
            if time.monotonic() > ends_s:
                raise RuntimeError(f"{what} must come within {max_s:.0f} s, but did not:\n{self._logs()}")
            time.sleep(0.2)

    def log(self, name: str) -> str:
        """What a process has printed."""
        return self._log_file(name).read_text(errors="replace")

    def _log_file(self, name: str) -> Path:
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"{name}.log"

    def _logs(self) -> str:
        return "\n".join(f"{name}: {self.log(name)[-2000:]}" for name in self.started)

    def end_all(self) -> None:
        """Ask all to end, and make those that do not, and whatever they left behind."""
        living = [process for process in self.started.values() if process.poll() is None]
        for process in living:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in living:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> Iterator[int]:
        """Processes with this federation's mark that are in sessions of their own, as some of Flower's are."""
        mark = f"{_MARK}={self.folder}".encode()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environment.read_bytes().split(b"\0"):
                    yield int(environment.parent.name)


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """Processes that have all ended afterwards, whatever happened."""
    running = Processes(folder)
    try:
        yield running
    finally:
        running.end_all()


def free_ports(count: int) -> list[int]:
    """That many ports of loopback on which nothing listens."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def listens(port: int) -> bool:
    """Whether somebody does on that port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
