"""A client's machine: starts its worker, its SuperNode and its way to the server, and restarts any of them that ends.

    python -m splitrank.federation.flower.supervisor CLIENT.toml

SIGINT, SIGTERM and SIGHUP stop them all.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from splitrank.errors import InputError
from splitrank.federation.flower.client_config import SECRETS, ClientConfig, read_client_config
from splitrank.federation.flower.client_proxy import client_proxy_command
from splitrank.files import try_lock
from splitrank.logs import show_log

_LOG = logging.getLogger("splitrank")

# No reports home, no look for newer versions, no installation of packages when an app starts, a quick look for tasks;
# and arrays in pieces that a slow link carries within the 30 s that Flower gives a request.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": "524288",
}

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 0.5
_START_AGAIN_AFTER_S = 3.0


def commands(own: ClientConfig, file: Path) -> dict[str, list[str]]:
    """Return the commands of a client's processes, by name, in the order in which to start them.

    Raises:
        InputError: neither certificates nor plaintext are asked for, or nginx or Flower is not installed.
    """
    node = own.node
    if "server" not in node:
        raise InputError(f"{file}: node.server must name the server and its port, got nothing; try HOST:9092")
    worker = [sys.executable, "-m", "splitrank.federation.flower.worker", str(file)]
    if shutil.which("flower-supernode", path=_path()) is None:
        raise InputError(
            'flower-supernode must be installed, got none on the PATH; try pip install "splitrank[flower]"'
        )
    supernode = ["flower-supernode", "--node-config", f"worker={json.dumps(str(own.socket))}", "--port", str(own.port)]
    if node.get("plaintext") is True:
        _LOG.warning("node.plaintext is on; everybody on the way reads and changes what is sent. For trials only.")
        return {"worker": worker, "SuperNode": [*supernode, "--superlink", node["server"], "--insecure"]}
    missing = [key for key in SECRETS if key not in node]
    if missing:
        raise InputError(
            f"{file}: node.{missing[0]} must be given, or node.plaintext = true for trials, got neither; "
            "`splitrank deploy init` writes all of them"
        )
    for key in SECRETS:
        if not (own.folder / node[key]).is_file():
            raise InputError(
                f"{file}: node.{key} must be a file, got {own.folder / node[key]}; ./make-keys.sh makes it"
            )
    if shutil.which("nginx") is None:
        raise InputError("nginx must be installed on a client, got none on the PATH; try apt-get install nginx-light")
    for key, option in (
        ("root_certificates", "--root-certificates"),
        ("private_key", "--auth-supernode-private-key"),
        ("trusted_entities", "--trusted-entities"),
    ):
        supernode += [option, str(own.folder / node[key])]
    return {
        "nginx": client_proxy_command(own),
        "worker": worker,
        "SuperNode": [*supernode, "--superlink", f"127.0.0.1:{own.proxy_port}"],
    }


class _Stop(Exception):  # noqa: N818
    """A signal to end."""


def _stop(number: int, frame: FrameType | None) -> None:
    for further in _SIGNALS:  # an impatient second one must not keep the first from ending all
        signal.signal(further, signal.SIG_IGN)
    raise _Stop


def main() -> None:
    """Keep a client's processes going until stopped."""
    show_log(with_time=True)
    file = Path(sys.argv[1])
    try:
        own = read_client_config(file)
        show_log(client=own.client, with_time=True)
        to_run = commands(own, file)
        if (lock := try_lock(own.folder / ".lock")) is None:
            raise InputError(f"{own.folder} must not be in use, but another supervisor runs there; stop it first")
    except InputError as error:
        _LOG.error(str(error))
        sys.exit(2)
    running: dict[str, subprocess.Popen[bytes]] = {}
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        for name, command in to_run.items():
            running[name] = _started(command)
        while True:
            for name, process in running.items():
                if (code := process.poll()) is not None:
                    if name == "worker" and code == 2:
                        sys.exit(2)  # it has said what must be mended
                    _LOG.info(f"The {name} ended with {code}; starting it again.")
                    time.sleep(_START_AGAIN_AFTER_S)
                    running[name] = _started(to_run[name])
            time.sleep(_LOOK_EVERY_S)
    except _Stop:
        _LOG.info("Stopping.")
    finally:
        _end(running)
        lock.close()


def _path() -> str:
    """Return the PATH for Flower's programs, those beside this Python first: its environment may not be activated."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process in its own session: a terminal's Ctrl-C reaches the supervisor alone, which ends the others."""
    environment = {**os.environ, **ENVIRONMENT, "PATH": _path()}
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """Have the system end this process when its parent has died in whatever way, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Ask all to end, the last started first: the SuperNode says goodbye through nginx; make those that do not."""
    for process in reversed(running.values()):
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
