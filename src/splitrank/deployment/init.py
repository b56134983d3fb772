"""``splitrank deploy init``: a folder with all that a federation on real machines needs but its texts."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from ipaddress import IPv4Address
from pathlib import Path

from splitrank.errors import InputError
from splitrank.files import fill_in, folder_built_atomically

_SUPERLINK_PORT, _APP_PORT = 8000, 8008
_COMPOSE_CLIENT = """  client-{client}:
    <<: *machine
    volumes: ["./client-{client}:/federation"]"""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?![0-9.]+$){_LABEL}(\.{_LABEL})*")


def init(folder: Path, *, server: str, num_clients: int, port: int) -> None:
    """Write a deployment's folder.

    Args:
        folder: new or empty.
        server: the name or IPv4 address by which clients reach the server.
        num_clients: how many clients the federation has, 1 to 1000.
        port: the server's port that clients reach, 1024 to 65535.

    Raises:
        InputError: an argument that breaks its rule, or a folder with something in it.
    """
    if len(server) > 253 or not (_NAME.fullmatch(server) or _is_ipv4(server)):
        raise InputError(f"--server must be a host's name or an IPv4 address, got {server!r}; try --server 192.0.2.1")
    if not 1 <= num_clients <= 1000:
        raise InputError(f"--clients must be a whole number from 1 to 1000, got {num_clients}")
    if not 1024 <= port <= 65535 or port in (_SUPERLINK_PORT, _APP_PORT):
        taken = f"{_SUPERLINK_PORT} and {_APP_PORT} are the server's own on loopback"
        raise InputError(f"--port must be from 1024 to 65535 ({taken}), got {port}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"DIR must be a new or empty folder, got the file {folder}; choose another name")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"DIR must be a new or empty folder, got {folder} with something in it; choose another")
    values = {
        "SERVER": server,
        "NUM_CLIENTS": str(num_clients),
        "MIN_CLIENTS": str(min(2, num_clients)),
        "PORT": str(port),
        "SUPERLINK_PORT": str(_SUPERLINK_PORT),
        "APP_PORT": str(_APP_PORT),
        "COMPOSE_CLIENTS": "\n".join(_COMPOSE_CLIENT.format(client=client) for client in range(num_clients)),
    }
    templates = resources.files("splitrank.deployment") / "templates"
    # An empty folder that is there stays what it is, perhaps a link or somebody's working folder, and is filled.
    new = folder / "new" if folder.exists() else folder
    with folder_built_atomically(new) as building:
        for template in templates.iterdir():
            if template.name == "client":
                for client in range(num_clients):
                    _write(template, building / f"client-{client}", {**values, "CLIENT": str(client)})
            elif template.name != "client-proxy":  # a client's supervisor fills that in, at every start
                _write(template, building / template.name, values)
    for script in new.rglob("*.sh"):
        script.chmod(0o755)
    if new != folder:
        for part in new.iterdir():
            part.rename(folder / part.name)
        new.rmdir()


def _is_ipv4(server: str) -> bool:
    try:
        IPv4Address(server)
    except ValueError:
        return False
    return True


def _write(template: Traversable, target: Path, values: dict[str, str]) -> None:
    if template.is_dir():
        if template.name == "__pycache__":
            return
        target.mkdir()
        for part in template.iterdir():
            _write(part, target / part.name, values)
        return
    target.write_text(fill_in(template.read_text(encoding="utf-8"), values), encoding="utf-8")
