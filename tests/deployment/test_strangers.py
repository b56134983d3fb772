"""Promise: nothing gets in. Whatever a stranger tries, the run goes on meanwhile with its own clients and no others."""

from __future__ import annotations

import json
import shutil
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from splitrank.federation.flower.client_config import read_client_config
from tests.deployment.flower_processes import (
    BIN,
    Deployment,
    app_folder,
    deployment,
    free_port,
    listens,
    server_settings,
    wait_for,
    write_connections,
)
from tests.records import records_of

pytestmark = pytest.mark.field

FOR_NODES = {
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run"),
    *("get-fab", "push-object", "pull-object", "confirm-message-received"),
}


@pytest.fixture(scope="module")
def deployed(tiny_settings, tiny_texts, tmp_path_factory) -> Iterator[Deployment]:
    """A deployment whose run goes on for longer than these tests; three nodes before and after."""
    settings = server_settings(tiny_settings, rounds=1000, timeout_s=120)
    with deployment(tmp_path_factory.mktemp("strangers"), settings, tiny_texts) as deployed:
        deployed.start()
        deployed.start_run()
        deployed.wait_for_rounds(1, 120)
        nodes = deployed.nodes()
        assert len(nodes) == 3
        yield deployed
        assert deployed.nodes() == nodes


@pytest.fixture(autouse=True)
def goes_on(deployed) -> Iterator[None]:
    """Rounds go on, every client in each of them."""
    rounds = deployed.rounds()
    yield
    deployed.wait_for_rounds(rounds + 1, 60)
    for line in records_of(deployed.run_folder)[rounds:]:
        assert [client["client"] for client in line["clients"]] == [0, 1, 2]
        assert not [client for client in line["clients"] if "missed" in client]


def at_the_port(deployed: Deployment) -> str:
    """Where a stranger comes from: the server's public port."""
    return f"127.0.0.1:{deployed.port}"


def behind_the_port(deployed: Deployment) -> str:
    """Where somebody comes from who has a client's certificate: that client's own way to the server."""
    return f"127.0.0.1:{read_client_config(deployed.folder / 'client-0' / 'client.toml').proxy_port}"


FROM = pytest.mark.parametrize("address", [at_the_port, behind_the_port])


def start_node(deployed: Deployment, name: str, address: str, *options: str | Path) -> subprocess.Popen[bytes]:
    """A stranger's SuperNode."""
    command = (BIN / "flower-supernode", "--superlink", address, "--port", str(free_port()), "--max-retries", "1")
    return deployed.running.start(name, *command, *options)


def gives_up(deployed: Deployment, name: str, address: str, *options: str | Path) -> str:
    """What a stranger's SuperNode says until it gives up."""
    assert start_node(deployed, name, address, *options).wait(60) != 0
    return deployed.running.log(name)


def stranger_key(deployed: Deployment, folder: Path) -> Path:
    deployed.running.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", folder / "stranger.key")
    return folder / "stranger.key"


@FROM
def test_a_node_without_a_registered_key_is_refused(deployed, tmp_path, address):
    options = ("--root-certificates", deployed.folder / "keys" / "ca.crt")
    options += ("--auth-supernode-private-key", stranger_key(deployed, tmp_path))
    said = gives_up(deployed, f"no-key-{address.__name__}", address(deployed), *options)
    # The SuperLink refuses the key behind the port; before it, nginx asks for a certificate.
    assert ("Failed to activate SuperNode" if address is behind_the_port else "400 Bad Request") in said


def test_a_clients_key_alone_opens_nothing(deployed):
    """A registered key without the certificate that goes with it."""
    options = ("--root-certificates", deployed.folder / "keys" / "ca.crt")
    options += ("--auth-supernode-private-key", deployed.folder / "client-2" / "node.key")
    assert "400 Bad Request" in gives_up(deployed, "no-certificate", at_the_port(deployed), *options)


def test_a_node_without_a_key_is_refused(deployed):
    """It would register itself; the proxy does not let it."""
    asked = deployed.folder / "server" / "nginx-access.log"
    start_node(
        deployed, "keyless", behind_the_port(deployed), "--root-certificates", deployed.folder / "keys" / "ca.crt"
    )
    wait_for(lambda: '"POST /v1/fleet/register-node HTTP/1.1" 403' in asked.read_text(), 60, "it is refused")
    deployed.stop("keyless")
    assert "SuperNode ID" not in deployed.running.log("keyless")


@FROM
def test_a_node_without_tls_gets_nothing(deployed, address):
    assert "400 Bad Request" in gives_up(deployed, f"plain-{address.__name__}", address(deployed), "--insecure")


def test_another_authority_is_not_trusted(deployed, tmp_path):
    """Neither side believes a certificate that the federation's own authority has not signed."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes", "-subj", "/CN=client 0")
    other = Identity(tmp_path / "other.crt", tmp_path / "other.key")
    files = ("-keyout", other.key, "-out", other.certificate)
    deployed.running.run("openssl", "req", "-x509", *curve, "-days", "1", *files)
    path = "/v1/fleet/activate-node"
    assert status(deployed, path, identity=identity(deployed)) == 401
    assert status(deployed, path, identity=other) == 400
    with pytest.raises(urllib.error.URLError, match="certificate"):
        status(deployed, path, identity=identity(deployed), authority=other.certificate)


def test_a_client_cannot_be_the_server(deployed):
    """A client's certificate, signed by the same authority, does not pass for the server's at another client."""
    folder, impostor, misled = deployed.folder / "client-1", free_port(), free_port()
    own = (folder / "nginx.conf").read_text()
    proxy_port = read_client_config(folder / "client.toml").proxy_port
    led_to_impostor = own.replace(f"server 127.0.0.1:{deployed.port}", f"server 127.0.0.1:{impostor}")
    for name, port, text in (("impostor", impostor, own), ("misled", misled, led_to_impostor)):
        text = text.replace(f"127.0.0.1:{proxy_port}", f"127.0.0.1:{port}").replace("nginx", name)
        (folder / f"{name}.conf").write_text(text)
        deployed.running.start(name, "nginx", "-p", folder, "-c", f"{name}.conf", "-e", f"{name}-error.log")
    wait_for(lambda: listens(impostor) and listens(misled), 10, "both are up")
    assert status(deployed, "/v1/fleet/activate-node", port=misled) == 502
    assert "does not match" in (folder / "misled-error.log").read_text()
    deployed.stop("misled")
    deployed.stop("impostor")


@dataclass(frozen=True)
class Identity:
    """A TLS certificate and its key."""

    certificate: Path
    key: Path


def identity(deployed: Deployment) -> Identity:
    """Client 0's."""
    return Identity(deployed.folder / "client-0" / "client.crt", deployed.folder / "client-0" / "client.key")


def status(
    deployed: Deployment,
    path: str,
    *,
    identity: Identity | None = None,
    authority: Path | None = None,
    port: int | None = None,
) -> int:
    """What a port, the public one if none is named, answers to one who has the authority's certificate."""
    trusted = ssl.create_default_context(cafile=str(authority or deployed.folder / "keys" / "ca.crt"))
    if identity is not None:
        trusted.load_cert_chain(identity.certificate, identity.key)
    request = urllib.request.Request(f"https://127.0.0.1:{port or deployed.port}{path}", data=b"", method="POST")
    request.add_header("Content-Type", "application/protobuf")
    try:
        with urllib.request.urlopen(request, context=trusted, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def superlink_paths() -> set[str]:
    """All paths that a SuperLink has."""
    from flwr.supercore.routers.runtime.router import router as runtime
    from flwr.superlink.routers.control.router import router as control
    from flwr.superlink.routers.fleet.router import router as fleet

    return {route.path for router in (control, fleet, runtime) for route in router.routes}


def test_only_what_nodes_need_is_public(deployed):
    for_nodes = {f"/v1/fleet/{name}" for name in FOR_NODES}
    paths = superlink_paths()
    assert for_nodes < paths
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/fleet/register-node"} < paths - for_nodes
    others = {*(paths - for_nodes), "/", "/docs", "/openapi.json", "/metrics", "/health"}
    everything = sorted(for_nodes | others)
    # With the authority's certificate alone: nothing. With a client's, too: what nodes need, which answers nobody
    # without a registered key.
    assert {path: status(deployed, path) for path in everything} == dict.fromkeys(everything, 400)
    answers = {path: status(deployed, path, identity=identity(deployed)) for path in everything}
    assert answers == {path: 401 if path in for_nodes else 403 for path in everything}


def test_no_way_round(deployed):
    """No spelling of a path passes for another one: nginx refuses it, or the SuperLink knows none such."""
    list_runs = (
        "//v1//control//list-runs",
        "/V1/control/list-runs",
        "/v1/control/list-runs/",
        "/v1/control/list-runs%00",
        "/v1/control/list-runs?/v1/fleet/pull-messages",
        "/v1/control/list-runs#/v1/fleet/pull-messages",
        "/v1/control/list-runs/../../fleet/pull-messages",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2flist-runs",
    )
    assert {status(deployed, path, identity=identity(deployed)) for path in list_runs} <= {400, 403, 404}


@FROM
def test_flowers_own_commands_are_refused(deployed, tmp_path, address):
    """Flower has the SuperLink register nodes and start runs for whoever reaches it; through the proxy nobody does."""
    home, app = tmp_path / "flwr", app_folder(tmp_path)
    stranger_key(deployed, tmp_path)
    certificate = str(deployed.folder / "keys" / "ca.crt")
    home.mkdir()
    write_connections(home, there={"address": address(deployed), "root-certificates": certificate})
    before = deployed.flwr("list", "server", "--format", "json").stdout.count('"run-id"')
    for command in (
        ("supernode", "register", tmp_path / "stranger.key.pub", "there"),
        ("supernode", "list", "there"),
        ("run", app, "there"),
        ("list", "there"),
    ):
        ended = deployed.running.run(BIN / "flwr", *command, check=False, FLWR_HOME=str(home))
        assert ended.returncode != 0, command
    assert deployed.flwr("list", "server", "--format", "json").stdout.count('"run-id"') == before == 1


SERVER = """
import json
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    content = RecordDict({"header": ConfigRecord({"json": "{}"})})
    nodes = list(grid.get_node_ids())
    messages = [Message(content, dst_node_id=node, message_type="train", ttl=60.0) for node in nodes]
    replies = grid.send_and_receive(messages, timeout=60)
    said = [reply.error.reason if reply.has_error() else "executed" for reply in replies]
    Path(context.run_config["out"]).write_text(json.dumps(said))
"""
CLIENT = """
from pathlib import Path
from flwr.clientapp import ClientApp

Path("@MARK@").touch()
app = ClientApp()


@app.train()
def train(message, context):
    raise RuntimeError
"""


@pytest.fixture
def hostile_app(tmp_path) -> Path:
    """An app that leaves a mark wherever its client part is even loaded."""
    app = app_folder(tmp_path)
    (app / "splitrank_app" / "server.py").write_text(SERVER)
    (app / "splitrank_app" / "client.py").write_text(CLIENT.replace("@MARK@", str(tmp_path / "mark")))
    return app


def refused_by_all(deployed: Deployment, app: Path | str, folder: Path) -> None:
    """Submit an app from the server itself; every node must refuse to execute it."""
    replies = folder / "replies.json"
    deployed.flwr("run", app, "server", "--run-config", f'out="{replies}"')
    wait_for(replies.exists, 90, "the hostile app has its replies")
    said = json.loads(replies.read_text())
    assert len(said) == 3
    assert all("verif" in reason.lower() for reason in said), said
    assert not (folder / "mark").exists()


def test_an_unsigned_app_is_not_executed(deployed, hostile_app, tmp_path):
    refused_by_all(deployed, hostile_app, tmp_path)


@pytest.mark.parametrize("signature", ["by another key", "of another app"])
def test_a_wrongly_signed_app_is_not_executed(deployed, hostile_app, tmp_path, signature):
    store, kept = deployed.folder / "server" / "app", tmp_path / "kept"
    shutil.copytree(store, kept)
    deployed.running.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    sign = (sys.executable, "-m", "splitrank.deployment.app_store", "sign")
    deployed.running.run(*sign, hostile_app, tmp_path / "key", tmp_path / "signed")
    shutil.copy(tmp_path / "signed" / "app.fab", store)
    if signature == "by another key":
        shutil.copy(tmp_path / "signed" / "app.json", store)
    try:
        refused_by_all(deployed, "@splitrank/splitrank-app==1.0.0", tmp_path)
    finally:
        shutil.copytree(kept, store, dirs_exist_ok=True)


def test_keys_and_sockets_are_their_owners(deployed):
    """Private keys, workers and their folders are for their owner alone, and no machine has another one's key."""
    private = [file for file in deployed.folder.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}
    held = {str(file.relative_to(deployed.folder)) for file in private if file.parent.name != "keys"}
    own = {f"client-{client}/{name}.key" for client in range(3) for name in ("client", "node")}
    assert held == {"server/server.key", *own}
    for client in range(3):
        folder = deployed.folder / f"client-{client}" / "worker"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_ISSOCK((folder / "socket").stat().st_mode)
        assert stat.S_IMODE((folder / "socket").stat().st_mode) == 0o600
