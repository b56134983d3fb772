"""Promises of a client's own file: what it may say, and one sentence about what it may not."""

from __future__ import annotations

import pytest

from splitrank.deployment.init import init
from splitrank.errors import InputError
from splitrank.federation.flower.own_settings import read_own_settings
from splitrank.federation.flower.station import commands

pytestmark = pytest.mark.extras


@pytest.fixture
def file(tmp_path):
    init(tmp_path / "federation", server="192.0.2.1", num_clients=2, port=9092)
    return tmp_path / "federation" / "client-1" / "client.toml"


def test_clients_of_one_machine_do_not_meet(file):
    own, other = read_own_settings(file), read_own_settings(file.parent.parent / "client-0" / "client.toml")
    assert len({own.port, own.proxy_port, other.port, other.proxy_port}) == 4
    assert own.socket != other.socket


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("client = 1", "client = -1", r"\[node\] with client \(a whole number"),
        ("client = 1", "client = 1.5", r"\[node\] with client \(a whole number"),
        ("[node]", "[nodes]", r"\[node\] with client"),
        ("client = 1", "client = 1\nprot = 1", r"node.prot must be one of .*got an unknown key"),
        ("client = 1", "client = 1\nport = 80", r"node.port must be a whole number from 1024 to 65535, got 80"),
        ("client = 1", 'client = 1\nproxy_port = "x"', r"node.proxy_port must be a whole number .*got 'x'"),
        ("client = 1", "client = 1\nport = 5000\nproxy_port = 5000", r"must differ, got 5000 twice"),
        ('server = "192.0.2.1:9092"', "server = 9092", r"node.server must be a text, got 9092"),
        ('path = "train.csv"', "", r"must name the client's texts"),
        ('path = "train.csv"', 'path = "train.csv"\n[adapter]\nrank = 4', r"adapter.rank must be set in the server's"),
    ],
)
def test_what_a_file_may_not_say(file, before, after, sentence):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=sentence):
        read_own_settings(file)


@pytest.mark.parametrize(
    "key", ["server", "root_certificates", "certificate", "certificate_key", "private_key", "trusted_entities"]
)
def test_nothing_starts_without_all_that_keeps_strangers_out(file, key):
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"node.{key} must"):
        commands(read_own_settings(file), file)


def test_plaintext_is_asked_for_and_warned_of(file, capsys):
    file.write_text(file.read_text().replace("[node]", "[node]\nplaintext = true"))
    started = commands(read_own_settings(file), file)
    assert list(started) == ["worker", "SuperNode"]
    assert started["SuperNode"][-3:] == ["--superlink", "192.0.2.1:9092", "--insecure"]
    assert "Warning: node.plaintext is on" in capsys.readouterr().err


def test_nginx_is_asked_for(file, monkeypatch):
    monkeypatch.setenv("PATH", str(file.parent))
    with pytest.raises(InputError, match="nginx must be installed"):
        commands(read_own_settings(file), file)
