"""Promise: Flower only carries messages. The same settings give the same rounds in one process, in Flower's simulation
and in a deployment with TLS, node keys and a signed app."""

from __future__ import annotations

import pytest

from splitrank import load_config, run
from tests.deployment.flower_processes import (
    BIN,
    app_folder,
    deployment,
    free_port,
    listens,
    processes,
    records,
    run_status,
    server_settings,
    submit,
    wait_for,
    without_wall,
    write_connections,
)

pytestmark = pytest.mark.deployment
ROUNDS = 3


@pytest.fixture
def settings(tiny_settings) -> str:
    return server_settings(tiny_settings, rounds=ROUNDS)


@pytest.fixture
def in_process(settings, tiny_texts, tmp_path) -> list[dict]:
    config = tmp_path / "settings.toml"
    config.write_text(settings + f'\n[data]\npath = "{tiny_texts}"\n')
    list(run(load_config(str(config)), tmp_path / "in-process"))
    return without_wall(records(tmp_path / "in-process"))


def test_a_simulation(in_process, settings, tiny_texts, tmp_path):
    with processes(tmp_path / "flower") as running:
        app, port = app_folder(running.root), free_port()
        command = ("--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port))
        running.start("superlink", BIN / "flower-superlink", *command)
        wait_for(lambda: listens(port), 60, "the SuperLink is up")
        write_connections(running, here={"address": f"127.0.0.1:{port}", "insecure": True})
        given = f'config="{tmp_path / "settings.toml"}" out="{tmp_path / "simulated"}"'
        nodes = "num-supernodes=3 client-resources-num-cpus=1"
        run_id = submit(running, app, "here", "--run-config", given, "--federation-config", nodes)
        wait_for(lambda: run_status(running, "here", run_id).startswith("finished"), 180, "the run is finished", 2.0)
        assert run_status(running, "here", run_id) == "finished:completed", running.log("superlink")
    assert without_wall(records(tmp_path / "simulated")) == in_process


def test_a_deployment(in_process, settings, tiny_texts, tmp_path):
    with deployment(tmp_path, settings, tiny_texts) as deployed:
        deployed.start()
        deployed.start_run()
        deployed.wait_until_finished(180)
        assert without_wall(records(deployed.run_folder)) == in_process
