"""A client's machine: starts its worker and its SuperNode, and starts again whichever ends.

    python -m splitrank.federation.flower.station CLIENT.toml

SIGINT, SIGTERM and SIGHUP stop all three.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from splitrank.errors import InputError
from splitrank.federation.flower.own_settings import OwnSettings, read_own_settings
from splitrank.progress import say

# No reports home, no look for newer versions, no installation of packages when an app starts, a quick look for tasks;
# and arrays in pieces that a slow link carries within the 30 s that Flower gives a request.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": "524288",
}

_LOOK_EVERY_S = 0.5
_START_AGAIN_AFTER_S = 3.0


def supernode_command(own: OwnSettings) -> list[str]:
    """The command that starts the client's SuperNode.

    Raises:
        InputError: neither certificates nor plaintext are asked for.
    """
    node = own.node
    command = [str(Path(sys.executable).with_name("flower-supernode")), "--superlink", str(node.get("server"))]
    command += ["--node-config", f"worker={json.dumps(str(own.socket))}", "--port", str(node.get("port", 9094))]
    if node.get("plaintext") is True:
        say("Warning: node.plaintext is on; everybody on the way reads and changes what is sent. For trials only.")
        return [*command, "--insecure"]
    for key, option in (
        ("root_certificates", "--root-certificates"),
        ("private_key", "--auth-supernode-private-key"),
        ("trusted_entities", "--trusted-entities"),
    ):
        if key not in node:
            raise InputError(f"node.{key} must be given, or node.plaintext = true for trials, got neither")
        command += [option, str(own.folder / str(node[key]))]
    return command


class _Stop(Exception):  # noqa: N818
    """A signal to end."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def main() -> None:
    """Keep worker and SuperNode going until stopped."""
    file = Path(sys.argv[1])
    own = read_own_settings(file)
    commands = {
        "worker": [sys.executable, "-m", "splitrank.federation.flower.worker", str(file)],
        "SuperNode": supernode_command(own),
    }
    running: dict[str, subprocess.Popen[bytes]] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        for name, command in commands.items():
            running[name] = _started(command)
        while True:
            for name, process in running.items():
                if process.poll() is not None:
                    say(f"The {name} ended with {process.returncode}; starting it again.")
                    time.sleep(_START_AGAIN_AFTER_S)
                    running[name] = _started(commands[name])
            time.sleep(_LOOK_EVERY_S)
    except _Stop:
        say("Stopping.")
    finally:
        _end(running)


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})


def _end(running: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Ask all to end, and make those that do not."""
    for ask, wait_s in ((subprocess.Popen.terminate, 5.0), (subprocess.Popen.kill, 5.0)):
        for process in running.values():
            ask(process)
        ends_s = time.monotonic() + wait_s
        for process in running.values():
            try:
                process.wait(max(0.0, ends_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


if __name__ == "__main__":
    main()
