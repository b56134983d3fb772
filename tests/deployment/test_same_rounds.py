"""Promise: Flower only carries messages. The same settings give the same rounds in one process, in Flower's simulation
and in a deployment with TLS, node keys and a signed app."""

from __future__ import annotations

import pytest

from splitrank import load_config, run
from tests.deployment.flower_processes import deployment, server_settings, simulated
from tests.records import records_of, without_wall

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
    return without_wall(records_of(tmp_path / "in-process"))


def test_a_simulation(settings, tiny_texts, tmp_path):
    """With a rank for each client, which sends messages of several sizes."""
    config = tmp_path / "settings.toml"
    own_ranks = '[planner]\nrank_policy = "per-client"\n'
    flexlora = settings.replace("[federation]", '[federation]\naggregation = "flexlora"')
    config.write_text(f'{flexlora}\n{own_ranks}\n[data]\npath = "{tiny_texts}"\n')
    list(run(load_config(str(config)), tmp_path / "in-process"))
    expected = without_wall(records_of(tmp_path / "in-process"))
    assert any(len({client["rank"] for client in record["clients"]}) > 1 for record in expected[1:])
    assert without_wall(simulated(tmp_path, config, 3)) == expected


def test_a_deployment(in_process, settings, tiny_texts, tmp_path):
    with deployment(tmp_path, settings, tiny_texts) as deployed:
        deployed.start()
        deployed.start_run()
        deployed.wait_until_finished(180)
        rounds = records_of(deployed.run_folder)
    print("Seconds a round:", *(f"{record['wall_s']:.1f}" for record in rounds[1:]))
    assert without_wall(rounds) == in_process


def test_a_hundred_nodes(settings, tiny_texts, tmp_path):
    config = tmp_path / "many.toml"
    many = settings.replace("[federation]", "[federation]\nnum_clients = 100")
    config.write_text(many + f'\n[data]\npath = "{tiny_texts}"\n')
    list(run(load_config(str(config)), tmp_path / "in-process"))
    rounds = simulated(tmp_path, config, 100)
    print("Seconds a round:", *(f"{record['wall_s']:.1f}" for record in rounds[1:]))
    assert without_wall(rounds) == without_wall(records_of(tmp_path / "in-process"))
