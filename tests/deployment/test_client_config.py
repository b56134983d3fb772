"""Promises of a client's own file: what it may say, and one sentence about what it may not."""

from __future__ import annotations

import csv
import sys
import tomllib

import pytest
import torch

from splitrank.config import config_from, flatten
from splitrank.deployment.init import init
from splitrank.errors import InputError
from splitrank.federation.flower.client_config import read_client_config
from splitrank.federation.flower.payload import NO_FLOATS
from splitrank.federation.flower.supervisor import commands
from splitrank.federation.flower.worker import Worker, main
from splitrank.federation.flower.worker_socket import listening
from splitrank.federation.model import load_model

pytestmark = pytest.mark.extras


@pytest.fixture
def file(tmp_path):
    init(tmp_path / "federation", server="192.0.2.1", num_clients=2, port=9092)
    folder = tmp_path / "federation" / "client-1"
    for name in ("ca.crt", "client.crt", "client.key", "node.key", "trusted.yaml"):
        (folder / name).touch()
    return folder / "client.toml"


def test_clients_of_one_machine_do_not_meet(file):
    own, other = read_client_config(file), read_client_config(file.parent.parent / "client-0" / "client.toml")
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
        (":9092", "", r"node.server must be HOST:PORT, got '192.0.2.1'"),
        ('"192.0.2.1:9092"', '"http://h:9092"', r"node.server must be HOST:PORT, got 'http://h:9092'"),
        ('socket = "worker/socket"', 'socket = ""', r"\[node\] with client .* and socket"),
        ('socket = "worker/', f'socket = "{100 * "x"}/', r"node.socket must be at most 100 bytes"),
        ("client = 1", 'client = 1\nplaintext = "yes"', r"node.plaintext must be true or false, got 'yes'"),
        ('path = "train.csv"', "path = 5", r"data.path must be"),
        ('path = "train.csv"', 'path = "train.csv"\n[model]\nname = 5', r"model.name must be"),
        ('path = "train.csv"', "", r"must name the client's texts"),
        ('path = "train.csv"', 'path = "train.csv"\n[adapter]\nrank = 4', r"adapter.rank must be set in the server's"),
    ],
)
def test_what_a_file_may_not_say(file, before, after, sentence):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=sentence):
        read_client_config(file)


@pytest.mark.parametrize(
    "key", ["server", "root_certificates", "certificate", "certificate_key", "private_key", "trusted_entities"]
)
def test_nothing_starts_without_all_that_keeps_strangers_out(file, key):
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"node.{key} must"):
        commands(read_client_config(file), file)


def test_nothing_starts_without_the_files_that_are_named(file):
    (file.parent / "node.key").unlink()
    with pytest.raises(InputError, match=r"node.private_key must be a file, got .*node.key; ./make-keys.sh makes it"):
        commands(read_client_config(file), file)


def test_a_socket_replaces_no_file(file):
    file.write_text(file.read_text().replace('socket = "worker/socket"', 'socket = "train.csv"'))
    (file.parent / "train.csv").write_text("text,label\n")
    file.parent.chmod(0o700)
    with pytest.raises(InputError, match="socket must be a new name"), listening(read_client_config(file).socket):
        pass
    assert (file.parent / "train.csv").read_text() == "text,label\n"


def test_a_server_that_names_columns_reads_no_text(file, tiny_texts, tiny_settings):
    """A hostile server asks for the column of texts as that of labels, of which refusals speak."""
    texts = (tiny_texts / "train.csv").read_text()
    (file.parent / "train.csv").write_text(texts)
    settings = flatten(tomllib.loads(tiny_settings))
    settings |= {"data.path": "x", "data.text": ["label"], "data.label": "text", "federation.num_clients": 2}
    model = load_model(config_from({**settings, "data.path": str(tiny_texts)}), ["a", "b"])
    header = {"labels": ["a", "b"], "settings": settings, "trunk_sha256": model.encoder.trunk_digest, "kind": "join"}
    # With the real classes the client reads its own columns, whatever the server says they are.
    classes = sorted({row["label"] for row in csv.DictReader(texts.splitlines())})
    worker = Worker(read_client_config(file))
    told = worker.answer({**header, "labels": classes}, NO_FLOATS)[0]
    worker.close()
    assert (told["kind"], told["samples"]) == ("joined", len(texts.splitlines()) - 1)

    answers = [Worker(read_client_config(file)).answer(header, NO_FLOATS)[0]]
    (file.parent / "train.csv").write_text(texts.partition("\n")[2])  # no header: its first text names a column
    answers.append(Worker(read_client_config(file)).answer(header, NO_FLOATS)[0])
    for answer in answers:
        assert answer == {"kind": "failure", "reason": "its texts cannot be used; the client's own log tells why"}


def test_a_clients_files_are_read_as_those_of_any_run(file, tiny_texts, tiny_settings, caplog):
    """Encoding and separator are its own to say, dev.* serves where test.* has no labels, 1 is the server's 1.0."""
    folder = file.parent / "mine"
    folder.mkdir()
    for name, rows in (("train", 6), ("dev", 4)):
        text = "text;label\n" + "".join(f"été {i}, fin;{i % 2 + 1}\n" for i in range(rows))
        (folder / f"{name}.csv").write_bytes(text.encode("cp1252"))
    (folder / "test.csv").write_text("number;text\n1;a\n")
    own = 'path = "mine"\nencoding = "cp1252"\nseparator = ";"'
    file.write_text(file.read_text().replace('path = "train.csv"', own))
    settings = flatten(tomllib.loads(tiny_settings)) | {"federation.num_clients": 2, "model.head": "local"}
    labels = ["1.0", "2.0", "unknown"]
    model = load_model(config_from({**settings, "data.path": str(tiny_texts)}), labels)
    header = {"labels": labels, "settings": settings, "trunk_sha256": model.encoder.trunk_digest, "kind": "join"}
    caplog.set_level("INFO", "splitrank")
    worker = Worker(read_client_config(file))
    told = worker.answer(header, NO_FLOATS)[0]
    worker.close()
    assert (told["kind"], told["samples"], told["test_samples"]) == ("joined", 6, 4)
    assert (
        "Texts: 6 training rows (train.csv), 4 test rows (dev.csv); 3 classes: 1.0 3, 2.0 3, unknown 0." in caplog.text
    )


def test_texts_stay_unread_for_a_server_with_another_model(file, tiny_settings):
    settings = flatten(tomllib.loads(tiny_settings)) | {"federation.num_clients": 2}
    header = {"labels": ["a", "b"], "settings": settings, "trunk_sha256": "0" * 64, "kind": "join"}
    assert not (file.parent / "train.csv").exists()
    reason = Worker(read_client_config(file)).answer(header, NO_FLOATS)[0]["reason"]
    assert reason.startswith("the frozen weights must be those of the server")


def test_each_machine_says_itself_where_it_computes(file, tiny_texts, tiny_settings, monkeypatch, capsys):
    """A server on a card asks nothing of clients without; a client's own card that is not there ends its worker."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (file.parent / "train.csv").write_text((tiny_texts / "train.csv").read_text())
    labels = [f"class-{index}" for index in range(4)]
    settings = flatten(tomllib.loads(tiny_settings)) | {"federation.num_clients": 2}
    model = load_model(config_from({**settings, "data.path": str(tiny_texts)}), labels)
    settings["run.device"] = "cuda:1"
    header = {"labels": labels, "settings": settings, "trunk_sha256": model.encoder.trunk_digest, "kind": "join"}
    for own in ("", '[run]\ndevice = "cpu"\n'):
        file.write_text(file.read_text() + own)
        worker = Worker(read_client_config(file))
        assert worker.answer(header, NO_FLOATS)[0]["kind"] == "joined"
        worker.close()
    file.write_text(file.read_text().replace('device = "cpu"', 'device = "cuda"'))
    monkeypatch.setattr(sys, "argv", ["worker", str(file)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert 'run.device must be one that PyTorch finds on this machine, cpu, got "cuda"' in capsys.readouterr().err


def test_plaintext_is_asked_for_and_warned_of(file, caplog):
    file.write_text(file.read_text().replace("[node]", "[node]\nplaintext = true"))
    started = commands(read_client_config(file), file)
    assert list(started) == ["worker", "SuperNode"]
    assert started["SuperNode"][-3:] == ["--superlink", "192.0.2.1:9092", "--insecure"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "node.plaintext is on" in caplog.text


def test_the_way_to_the_server_is_written_from_the_clients_file(file, monkeypatch, tmp_path):
    """At every start, so that what was changed in the file holds; `deploy init` leaves no such file half filled in."""
    assert not (file.parent / "nginx.conf").exists()
    assert not list(file.parent.parent.glob("client-proxy"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("nginx", "flower-supernode"):
        (programs / name).write_text("")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    file.write_text(file.read_text().replace("# proxy_port = 21000", "proxy_port = 23456"))
    command = commands(read_client_config(file), file)["nginx"]
    assert command == ["nginx", "-p", str(file.parent), "-c", "nginx.conf", "-e", "nginx-error.log"]
    written = (file.parent / "nginx.conf").read_text()
    assert "@" not in written
    for line in (
        "server 192.0.2.1:9092;",
        "listen 127.0.0.1:23456 ssl;",
        'proxy_ssl_certificate "client.crt";',
        'proxy_ssl_trusted_certificate "ca.crt";',
        "proxy_ssl_verify on;",
        "proxy_ssl_name splitrank-server;",
    ):
        assert f"  {line}\n" in written


def test_nginx_is_asked_for(file, monkeypatch):
    monkeypatch.setenv("PATH", str(file.parent))
    with pytest.raises(InputError, match="nginx must be installed"):
        commands(read_client_config(file), file)


def test_programs_are_found_by_the_path(file, monkeypatch, tmp_path):
    """Scripts are not beside every Python: Debian's, and what `pip install --user` puts into ~/.local/bin."""
    elsewhere = tmp_path / "bin"
    elsewhere.mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "usr" / "python3"))
    monkeypatch.setenv("PATH", str(elsewhere))
    file.write_text(file.read_text().replace("[node]", "[node]\nplaintext = true"))
    with pytest.raises(InputError, match="flower-supernode must be installed"):
        commands(read_client_config(file), file)
    (elsewhere / "flower-supernode").write_text("")
    (elsewhere / "flower-supernode").chmod(0o755)
    assert commands(read_client_config(file), file)["SuperNode"][0] == "flower-supernode"
