"""A client's own file: which client it is, its texts, and what of its machine it keeps to itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrank.config import config_from, flatten, read_toml
from splitrank.errors import InputError
from splitrank.federation.flower.payload import is_count
from splitrank.federation.flower.worker_socket import MAX_PATH_BYTES

SECRETS = ("root_certificates", "certificate", "certificate_key", "private_key", "trusted_entities")
"""Keys of ``[node]`` that name the files of a connection that nobody else can read or use."""

# The usual ports, to which the client's number is added: several clients on one machine do not meet.
_PORTS = {"port": 20_000, "proxy_port": 21_000}
_NODE = {"client", "socket", "server", "plaintext", *_PORTS, *SECRETS}
_ADDRESS = re.compile(r"[A-Za-z0-9.-]+:[1-9][0-9]{0,4}")
_OWN = {
    *("data.path", "data.text", "data.label", "data.encoding", "data.separator", "data.columns"),
    *("model.name", "run.threads", "run.cache_limit_gb", "run.device"),
    *("client.capacitance", "client.max_frequency_hz", "client.circuit_energy_j", "client.test_share"),
    "budget.energy_j",
}


@dataclass(frozen=True)
class ClientConfig:
    """The content of a client's file.

    Attributes:
        client: its number, 0 to federation.num_clients − 1.
        socket: where its worker listens.
        port, proxy_port: where its SuperNode and its nginx listen on loopback.
        layer: dotted keys that go over the server's settings, ``data.path`` among them.
        node: the table ``[node]``, for starting the SuperNode.
        folder: where the file is; relative paths in it start there.
    """

    client: int
    socket: Path
    port: int
    proxy_port: int
    layer: Mapping[str, Any]
    node: Mapping[str, Any]
    folder: Path


def read_client_config(path: Path) -> ClientConfig:
    """Read a client's file.

    Raises:
        InputError: it cannot be read, or a key is missing, unknown or not the client's to set.
        ConfigError: a value breaks its rule.
    """
    tables = read_toml(path)
    node = tables.pop("node", None)
    if not isinstance(node, dict) or not is_count(node.get("client")) or not _is_text(node.get("socket")):
        raise InputError(f"{path} must have a table [node] with client (a whole number, 0 or greater) and socket")
    unknown = sorted(set(node) - _NODE)
    if unknown:
        raise InputError(f"{path}: node.{unknown[0]} must be one of {', '.join(sorted(_NODE))}, got an unknown key")
    for key in ("server", *SECRETS):
        if key in node and not _is_text(node[key]):
            raise InputError(f"{path}: node.{key} must be a text, got {node[key]!r}")
    if not isinstance(node.get("plaintext", False), bool):
        raise InputError(f"{path}: node.plaintext must be true or false, got {node['plaintext']!r}")
    if "server" in node and not _ADDRESS.fullmatch(node["server"]):
        raise InputError(f"{path}: node.server must be HOST:PORT, got {node['server']!r}; try 192.0.2.1:9092")
    ports = {key: node.get(key, first + node["client"]) for key, first in _PORTS.items()}
    for key, port in ports.items():
        if not is_count(port) or not 1024 <= port <= 65535:
            raise InputError(f"{path}: node.{key} must be a whole number from 1024 to 65535, got {port!r}")
    if len(set(ports.values())) < len(ports):
        raise InputError(
            f"{path}: {' and '.join(f'node.{key}' for key in ports)} must differ, got {ports['port']} twice"
        )
    layer = flatten(tables)
    foreign = sorted(set(layer) - _OWN)
    if foreign:
        raise InputError(
            f"{path}: {foreign[0]} must be set in the server's file; a client's own has {', '.join(sorted(_OWN))}"
        )
    if "data.path" not in layer:
        raise InputError(f"{path} must name the client's texts, a CSV file or folder: data.path is missing")
    config_from(layer)
    here = path.resolve().parent
    layer["data.path"] = str(here / Path(layer["data.path"]).expanduser())
    if "model.name" in layer and (here / layer["model.name"]).is_dir():
        layer["model.name"] = str(here / layer["model.name"])
    socket = here / Path(node["socket"]).expanduser()
    if len(os.fsencode(socket)) > MAX_PATH_BYTES:
        raise InputError(
            f"{path}: node.socket must be at most {MAX_PATH_BYTES} bytes from the root, got {socket}; "
            "move the folder, or name a socket elsewhere, in a folder of its own"
        )
    return ClientConfig(node["client"], socket, ports["port"], ports["proxy_port"], layer, node, here)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
