"""Real Flower processes on loopback, all stopped at the end: a simulation, or a SuperLink with SuperNodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from benchmarks.loopback import BIN, SWITCHES, free_ports, listens
from tests.records import records_of

IS_UP = "The server is up"
QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}


def app_folder(root: Path) -> Path:
    """A copy of the app that `splitrank deploy init` writes."""
    with resources.as_file(resources.files("splitrank") / "deployment" / "templates" / "app") as app:
        return Path(shutil.copytree(app, root / "app", ignore=shutil.ignore_patterns("__pycache__")))


def free_port() -> int:
    return free_ports(1)[0]


@dataclass
class Processes:
    """Processes of one test, each with a log in ``root/logs``, and the environment they run in."""

    root: Path
    environment: Mapping[str, str]
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        logs = self.root / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**self.environment, **environment},
                start_new_session=True,
            )
        return self.started[name]

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            env={**self.environment, **environment},
            timeout=timeout,
        )
        assert not check or ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended

    def log(self, name: str) -> str:
        return (self.root / "logs" / f"{name}.log").read_text(errors="replace")

    def stop_all(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.started.values():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in self.started.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)


@contextmanager
def processes(root: Path, **environment: str) -> Iterator[Processes]:
    folders = {"FLWR_HOME": str(root / "flwr"), "XDG_CACHE_HOME": str(root / "xdg-cache"), "RAY_TMPDIR": "/tmp"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    path = f"{BIN}:{inherited.get('PATH', '')}"
    (root / "flwr").mkdir(parents=True, exist_ok=True)
    running = Processes(root, {**inherited, **SWITCHES, **QUICK, **folders, "PATH": path, **environment})
    try:
        yield running
    finally:
        running.stop_all()


def wait_for(condition, seconds: float, what: str, every_s: float = 0.2) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what} within {seconds} s"
        time.sleep(every_s)


def write_connections(home: Path | str, **connections: Mapping[str, object]) -> None:
    """Flower's connections, as config.toml in its home holds them."""
    lines = []
    for name, values in connections.items():
        lines.append(f"[superlink.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    Path(home, "config.toml").write_text("\n".join(lines) + "\n")


def run_status(running: Processes, connection: str, run_id: str) -> str:
    listed = running.run(BIN / "flwr", "list", connection, "--run-id", run_id, "--format", "json")
    return str(json.loads(listed.stdout)["runs"][0]["status"])


def submit(running: Processes, app: Path, connection: str, *options: str) -> str:
    """`flwr run`; gives the run's name."""
    ended = running.run(BIN / "flwr", "run", app, connection, "--format", "json", *options)
    return str(json.loads(ended.stdout[ended.stdout.index("{") :])["run-id"])


def family(pid: int) -> dict[int, str]:
    """A process and all that descend from it, with their commands."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, left = {}, [pid]
    while left:
        member = left.pop()
        with suppress(OSError):
            found[member] = Path(f"/proc/{member}/cmdline").read_text().replace("\0", " ")
        left += children.get(member, [])
    return found


def server_settings(tiny: str, **federation: object) -> str:
    """The tiny settings without texts, with other keys for the federation, in float32, as everywhere the same."""
    start, end = tiny.index("[data]"), tiny.index("[federation]")
    text = tiny[:start] + tiny[end:]
    assert "rounds = 4\n" in text
    assert "threads = 1\n" in text
    keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in federation.items())
    return text.replace("rounds = 4", keys).replace("max_length = 32", 'max_length = 32\nprecision = "fp32"')


def simulated(root: Path, config: Path, num_clients: int, seconds: float = 180) -> list[dict]:
    """The rounds of a run in Flower's simulation, left in ``root/simulated``."""
    with processes(root / "flower") as running:
        app, port = app_folder(running.root), free_port()
        command = ("--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port))
        running.start("superlink", BIN / "flower-superlink", *command)
        wait_for(lambda: listens(port), 60, "the SuperLink is up")
        write_connections(running.environment["FLWR_HOME"], here={"address": f"127.0.0.1:{port}", "insecure": True})
        given = f'config="{config}" out="{root / "simulated"}"'
        nodes = f"num-supernodes={num_clients} client-resources-num-cpus=1"
        run_id = submit(running, app, "here", "--run-config", given, "--federation-config", nodes)
        wait_for(lambda: run_status(running, "here", run_id).startswith("finished"), seconds, "the run ends", 2.0)
        log = running.run(BIN / "flwr", "log", run_id, "here", "--show").stdout
        assert run_status(running, "here", run_id) == "finished:completed", log
    return records_of(root / "simulated")


def shards(texts: Path, num_clients: int, seed: int, folder: Path) -> list[Path]:
    """The training rows as a run in one process shares them out, one file for each client."""
    import csv

    from splitrank.learning.data import load_path
    from splitrank.learning.partition import partition_iid

    data = load_path(texts)
    files = []
    for client, rows in enumerate(partition_iid(data.train_labels, num_clients, seed)):
        files.append(folder / f"shard-{client}.csv")
        with files[-1].open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            table.writerows([data.train_texts[row], data.label_names[data.train_labels[row]]] for row in rows)
    return files


@dataclass
class Deployment:
    """A folder of `splitrank deploy init` on loopback, with keys, texts and settings in place.

    ``inside`` has for a client what comes before the command that starts it.
    """

    folder: Path
    running: Processes
    port: int
    num_clients: int
    inside: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def start_server(self) -> None:
        self.running.start("server", self.folder / "server" / "start.sh")
        before = self.running.log("server").count(IS_UP)
        wait_for(lambda: self.running.log("server").count(IS_UP) > before, 60, "the server is up")

    def start_client(self, client: int) -> None:
        start = self.folder / f"client-{client}" / "start.sh"
        self.running.start(f"client-{client}", *self.inside.get(client, ()), start)

    def start(self) -> None:
        self.start_server()
        for client in range(self.num_clients):
            self.start_client(client)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.running.started.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait(30)

    def kill(self, name: str, part: str = "") -> int:
        """End a started process and all of its own as a power cut would, or those with a part of their command."""
        process = self.running.started[name]
        chosen = [pid for pid, command in family(process.pid).items() if part in command]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.pid in chosen:
            self.running.started.pop(name).wait(30)
        return len(chosen)

    def flwr(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Flower's command line as the server's owner has it."""
        return self.running.run(BIN / "flwr", *command, check=check, FLWR_HOME=str(self.folder / "server" / "flwr"))

    def nodes(self) -> dict[str, str]:
        """Nodes that the SuperLink knows, with their states."""
        listed = json.loads(self.flwr("supernode", "list", "server", "--format", "json").stdout)
        return {node["node-id"]: node["status"] for node in listed["nodes"]}

    def wait_for_nodes(self, seconds: float) -> None:
        """Wait until every client's node is online."""
        online = ["online"] * self.num_clients
        wait_for(lambda: list(self.nodes().values()) == online, seconds, "all nodes are online", 2.0)

    @property
    def run_folder(self) -> Path:
        return self.folder / "server" / "run"

    def start_run(self, name: str = "run") -> None:
        self.running.start(name, self.folder / "server" / "run.sh")

    def rounds(self) -> int:
        """Rounds on record, -1 before the first line."""
        file = self.run_folder / "rounds.jsonl"
        return file.read_bytes().count(b"\n") - 1 if file.exists() else -1

    def wait_for_rounds(self, rounds: int, seconds: float) -> None:
        wait_for(lambda: self.rounds() >= rounds, seconds, f"round {rounds} is over")

    def wait_until_finished(self, seconds: float) -> None:
        finished = self.run_folder / "adapter" / "adapter_model.safetensors"

        def has_ended() -> bool:
            return finished.exists() or self.running.started["run"].poll() is not None

        wait_for(has_ended, seconds, "the run is finished")
        wait_for(finished.exists, 5, "the run has its adapter")


@contextmanager
def deployment(
    root: Path,
    settings: str,
    texts: Path,
    *,
    num_clients: int = 3,
    seed: int = 0,
    server: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[Deployment]:
    """A deployment that is ready to start; ``settings`` are the server's but for the data."""
    from splitrank.deployment.init import init

    folder = root / "a b"  # a space, and no more, as a socket's path must be short
    own_port, superlink_port, app_port, *client_ports = free_ports(3 + 2 * num_clients)
    port = port or own_port
    init(folder, server=server, num_clients=num_clients, port=port)
    own = {"8000": str(superlink_port), "8008": str(app_port)}
    for file in (folder / "server").iterdir():
        file.write_text(re.sub(r"\b(8000|8008)\b", lambda found: own[found[0]], file.read_text()))
    (folder / "server" / "config.toml").write_text(settings + '\n[data]\npath = "test.csv"\n')
    shutil.copy(texts / "test.csv", folder / "server" / "test.csv")
    for client, shard in enumerate(shards(texts, num_clients, seed, root)):
        own = folder / f"client-{client}"
        shutil.copy(shard, own / "train.csv")
        ports = f"[node]\nport = {client_ports[2 * client]}\nproxy_port = {client_ports[2 * client + 1]}\n"
        (own / "client.toml").write_text((own / "client.toml").read_text().replace("[node]\n", ports))
    with processes(root) as running:
        running.run(folder / "make-keys.sh")
        yield Deployment(folder, running, port, num_clients)
