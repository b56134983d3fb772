"""Claim: through Flower a round takes at most 7 s beside its training, less than an ordinary Flower app adds.

Real processes on loopback with TLS, 3 clients, MiniLM, AG News, LoRA of rank 8 on query and value of the last three of
6 layers, one thread for each client and for the server. Counted is what a round takes beyond the slowest client's
training: planning, sending, starting processes, loading, averaging, recording.

Before: ``rivals/flower_deployed``, Flower 1.41 with its own FedAvg and a ClientApp that loads PyTorch, Transformers,
PEFT and the encoder and then trains. A round lasts from the end of the server's test to the end of the next; taken off
are the slowest client's training, from the first batch to the last step, and the test.

After: the folder that ``splitrank deploy init`` writes, started by its own scripts, with node keys, signed app and
nginx. Only its ports are changed, so that all fit on one machine, and nginx's address, so that nothing is seen from
outside. Each client's worker keeps PyTorch, encoder and cache, and the ClientApp only asks it. The numbers are those of
rounds.jsonl: ``wall_s`` less the largest ``wall_compute_s``. How long the test took is not on record, so it stays in,
against us; the checkpoint after a round is not in ``wall_s`` and takes some hundredths of a second.

Both sides have the same texts, sizes and SuperNodes, and leave the test to the server (``fraction_evaluate=0``). Both
change of Flower's defaults what splitrank's scripts change: FLWR_SUPEREXEC_TASK_POLL_INTERVAL is 0.05 s instead of 1 s,
reports, looks for updates and installing packages are off. splitrank alone sends arrays in pieces of 512 KiB. The rival
has neither node keys nor a signed app nor a proxy, which would only add to its rounds. What Flower does not let anyone
change is as it is: a SuperNode without work looks for some every three seconds.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.deployed_rounds_add_few_seconds

Needs the extra ``flower``, nginx, openssl and ssh-keygen; some three minutes on two idle cores, and idle they should
be: Flower starts a process for every message. Not one of the scripts of ``python -m benchmarks``.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import signal
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loopback import free_ports, processes
from benchmarks.materials import agnews_rows, empty_cache, settings_of_all
from benchmarks.measure import conclude
from benchmarks.rivals.flower_deployed.process import deployed_rounds
from benchmarks.rivals.task import task_of
from splitrank import load_config
from splitrank.config import to_toml
from splitrank.deployment.init import init

MAX_S = 7.0
LAYERS = (3, 4, 5)
MAX_RUN_S = 900.0


def write_texts(file: Path, texts: Sequence[str], labels: Sequence[int]) -> Path:
    """A CSV file that either side reads, class numbers being its labels."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        lines = csv.writer(opened)
        lines.writerow(["text", "label"])
        lines.writerows(zip(texts, labels, strict=True))
    return file


def fit_on_one_machine(deployment: Path, ports: Iterator[int]) -> None:
    """Give every process of a deployment a port of its own, and keep nginx on loopback."""
    own = {"8000": str(next(ports)), "8008": str(next(ports)), "listen ": "listen 127.0.0.1:"}
    for file in (deployment / "server").iterdir():
        file.write_text(re.sub(r"\b(8000|8008|listen )\b", lambda found: own[found[0]], file.read_text()))
    for file in deployment.glob("client-*/client.toml"):
        own_ports = f"[node]\nport = {next(ports)}\nproxy_port = {next(ports)}\n"
        file.write_text(file.read_text().replace("[node]\n", own_ports))


def our_rounds(
    settings: str, deployment: Path, *, client_files: Sequence[Path], test_file: Path, ports: Iterator[int]
) -> list[dict[str, Any]]:
    """What each round of splitrank's own deployment took: ``wall_s``, ``train_s`` of the slowest client,
    ``exchange_s`` from sending the adapter to the last answer; and its ``accuracy``.

    Raises:
        RuntimeError: a process failed, or a client gave no update in some round.
    """
    server = deployment / "server"
    init(deployment, server="127.0.0.1", num_clients=len(client_files), port=next(ports))
    fit_on_one_machine(deployment, ports)
    (server / "config.toml").write_text(settings)
    shutil.copy(test_file, server / "test.csv")
    with processes(deployment) as running:
        running.run("make-keys", deployment / "make-keys.sh", max_s=60)
        running.start("server", server / "start.sh")
        running.wait_for(lambda: "The server is up" in running.log("server"), 120, "the server")
        for client, file in enumerate(client_files):
            shutil.copy(file, deployment / f"client-{client}" / "train.csv")
            running.start(f"client-{client}", deployment / f"client-{client}" / "start.sh")
        running.run("run", server / "run.sh", max_s=MAX_RUN_S)
        if not (server / "run" / "adapter").exists():
            raise RuntimeError(f"the run failed:\n{running.log('run')[-3000:]}")
    lines = (server / "run" / "rounds.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]
    if any(client["dropped"] for record in records for client in record["clients"]):
        raise RuntimeError(f"every client must train in every round, got {records}")
    return [
        {
            "wall_s": record["wall_s"],
            "train_s": max(client["wall_compute_s"] for client in record["clients"]),
            "exchange_s": max(client["wall_latency_s"] for client in record["clients"]),
            "accuracy": record["accuracy"],
        }
        for record in records
    ]


def spoken(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} s a round ({min(seconds):.1f} to {max(seconds):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--train-rows", type=int, default=16, help="training texts of each client")
    parser.add_argument("--test-rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is stopped whoever stops this

    with empty_cache() as folder:
        rows = agnews_rows(folder / "rows", arguments.clients * arguments.train_rows, arguments.test_rows)
        sizes = {"clients": arguments.clients, "rounds": arguments.rounds, "threads": 1}
        task = task_of(load_config("offline", settings_of_all(Path("minilm"), rows, **sizes)), LAYERS)
        shares = enumerate(zip(task.client_texts, task.client_labels, strict=True))
        client_files = [write_texts(folder / f"client-{client}.csv", *share) for client, share in shares]
        test_file = write_texts(folder / "test.csv", task.test_texts, task.test_labels)
        ports = iter(free_ports(10 + 5 * arguments.clients))
        on_server = settings_of_all(Path(task.location), Path("test.csv"), **sizes)
        settings = to_toml(load_config("offline", [*on_server, f"federation.min_clients={arguments.clients}"]))

        texts = {"client_files": client_files, "test_file": test_file}
        ours = our_rounds(settings, folder / "splitrank", **texts, ports=ports)
        print(f"splitrank: {ours}", flush=True)
        theirs = deployed_rounds(task, folder / "flower", **texts, keys=folder / "splitrank" / "server", ports=ports)
        print(f"Flower: {theirs}", flush=True)

    ours_s = [took["wall_s"] - took["train_s"] for took in ours]
    theirs_s = [took["wall_s"] - took["train_s"] - took["test_s"] for took in theirs]
    ours_median_s, theirs_median_s = statistics.median(ours_s), statistics.median(theirs_s)
    conclude(
        "deployed_rounds_add_few_seconds",
        f"MiniLM, {arguments.clients} clients with {arguments.train_rows} AG News texts each, {arguments.rounds} "
        f"rounds: beside training an ordinary Flower app takes {spoken(theirs_s)}, splitrank's deployment "
        f"{spoken(ours_s)}, a ratio of {theirs_median_s / ours_median_s:.1f}",
        ours_median_s <= MAX_S and ours_median_s < theirs_median_s,
        most_s=MAX_S,
        clients=arguments.clients,
        train_rows_per_client=arguments.train_rows,
        test_rows=arguments.test_rows,
        splitrank=ours,
        splitrank_added_s=ours_s,
        flower=theirs,
        flower_added_s=theirs_s,
    )


if __name__ == "__main__":
    main()
