"""Promises of `splitrank deploy init`: a whole folder or none, one sentence about what cannot be, no file lost."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from splitrank.config import config_from, flatten, read_toml
from splitrank.deployment.init import init
from splitrank.errors import InputError


@pytest.mark.parametrize("server", ["h", "my-server.example.org", "192.0.2.1", "a1.b2"])
def test_a_server_by_name_or_address(tmp_path, server):
    init(tmp_path / "new", server=server, num_clients=2, port=9092)
    assert f'server = "{server}:9092"' in (tmp_path / "new" / "client-1" / "client.toml").read_text()
    assert f'server="{server}"' in (tmp_path / "new" / "make-keys.sh").read_text()


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    """The working folder, too, and the one that a link leads to."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    init(Path("."), server="h", num_clients=2, port=9092)
    assert (tmp_path / "link" / "make-keys.sh").is_file()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["here", "link"]
    assert "new" not in [entry.name for entry in (tmp_path / "here").iterdir()]


@pytest.mark.parametrize(
    "server", ["", "1.2.3", "999.1.1.1", "::1", "a..b", "-x", "a_b", "h;rm", "h\n", "h:9092", 64 * "a", 64 * "abc."]
)
def test_no_server(tmp_path, server):
    with pytest.raises(InputError, match=r"--server must be .*got"):
        init(tmp_path / "new", server=server, num_clients=2, port=9092)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("num_clients", "port"), [(0, 9092), (1001, 9092), (2, 80), (2, 65536), (2, 8000), (2, 8008)])
def test_numbers_out_of_range(tmp_path, num_clients, port):
    with pytest.raises(InputError, match=r"--(clients|port) must be .*got"):
        init(tmp_path / "new", server="h", num_clients=num_clients, port=port)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(InputError, match="DIR must be a new or empty folder"):
            init(taken, server="h", num_clients=2, port=9092)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]
    assert (tmp_path / "full" / "mine").read_text() == "mine"


def test_what_is_written(tmp_path):
    folder = tmp_path / "new"
    init(folder, server="192.0.2.1", num_clients=3, port=9092)
    assert sorted(path.name for path in folder.glob("client-*")) == ["client-0", "client-1", "client-2"]
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert not re.search(r"@[A-Z_]+@", file.read_text()), file
        assert os.access(file, os.X_OK) == (file.suffix == ".sh")
        if file.suffix == ".sh":
            subprocess.run(["bash", "-n", file], check=True)
    config = config_from(flatten(read_toml(folder / "server" / "config.toml")))
    assert (config.federation.num_clients, config.federation.min_clients) == (3, 2)
    assert config.workload.model == "measured"
    numbers = [read_toml(folder / f"client-{client}" / "client.toml")["node"]["client"] for client in range(3)]
    assert numbers == [0, 1, 2]
    assert Path(folder / "compose.yaml").read_text().count("<<: *machine") == 4
    assert "!*.whl" in (folder / ".dockerignore").read_text()


def test_one_client(tmp_path):
    """Too few for an average, enough to try it."""
    init(tmp_path / "new", server="h", num_clients=1, port=9092)
    config = config_from(flatten(read_toml(tmp_path / "new" / "server" / "config.toml")))
    assert (config.federation.num_clients, config.federation.min_clients) == (1, 1)
