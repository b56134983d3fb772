"""Promises of ``run.device``: what is not there is refused before any work, what is named is what computes."""

from __future__ import annotations

import pytest
import torch

from splitrank import load_config, load_data, make_clients, predict, run
from splitrank.errors import ConfigError
from splitrank.federation import model
from splitrank.federation.resume import resumed_config
from splitrank.learning.device import available_devices, resolve_device
from tests.federation.test_run import run_all
from tests.records import equal_records


@pytest.fixture
def two_cards(monkeypatch):
    """A machine that says it has two cards, on which nothing can really be computed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def no_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_devices_are_those_of_the_machine(two_cards):
    assert available_devices() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    found = [str(resolve_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")]
    assert found == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(ConfigError) as error:
        resolve_device("cuda:2")
    assert str(error.value) == (
        "run.device must be one that PyTorch finds on this machine, cpu or cuda or cuda:0 or cuda:1, got "
        '"cuda:2"; try run.device = "auto"'
    )


def test_auto_takes_no_apple_gpu_unasked(no_cards, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [str(resolve_device(name)) for name in ("auto", "mps")] == ["cpu", "mps"]


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_run_is_refused_before_any_work(name, tiny_config, tmp_path, no_cards):
    """Before a text is looked for: the folder named here does not exist."""
    config = load_config(str(tiny_config), [f"run.device={name}", 'data.path="nowhere"'])
    with pytest.raises(ConfigError, match=rf'run\.device must be .* on this machine, cpu, got "{name}"'):
        next(run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["gpu", "cuda:x", "cuda:", "CPU", "cpu:0"])
def test_other_names_are_refused(value, tiny_config):
    rule = r"run\.device must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', got"
    with pytest.raises(ConfigError, match=rf"{rule} '{value}'"):
        load_config(str(tiny_config), [f"run.device={value}"])


@pytest.mark.parametrize(("name", "found"), [("auto", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_the_encoder_is_loaded_there(name, found, tiny_config, two_cards, monkeypatch):
    class LoadedError(Exception):
        pass

    def load_encoder(*_, device, **__):
        raise LoadedError(str(device))

    monkeypatch.setattr(model, "load_encoder", load_encoder)
    config = load_config(str(tiny_config), [f"run.device={name}", "model.precision=fp32"])
    with pytest.raises(LoadedError, match=f"^{found}$"):
        make_clients(config, load_data(config))


def test_a_machine_with_cards_computes_on_the_processor_if_told(tiny_config, tmp_path, monkeypatch):
    """Training, evaluating, exporting and predicting; by itself it would ask for a card, which this PyTorch lacks."""
    settings = ["federation.rounds=1", "model.precision=fp32"]
    run_all(tiny_config, tmp_path / "auto", *settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run_all(tiny_config, tmp_path / "cpu", *settings, "run.device=cpu")
    assert equal_records(tmp_path / "cpu") == equal_records(tmp_path / "auto")
    assert len(list(predict(tmp_path / "cpu", ["the market"]))) == 1
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda"):
        list(predict(tmp_path / "auto", ["the market"]))


def test_a_run_goes_on_and_predicts_where_its_device_is_not(tiny_config, tmp_path, no_cards):
    """A run that was told to compute on a card moves to a machine without one."""
    out = tmp_path / "run"
    run_all(tiny_config, out, "federation.rounds=1", "run.device=cpu")
    text = (out / "config.toml").read_text()
    assert 'device = "cpu"' in text
    (out / "config.toml").write_text(text.replace('device = "cpu"', 'device = "cuda:3"'))
    assert len(list(predict(out, ["the market"]))) == 1
    more = ["federation.rounds=2"]
    with pytest.raises(ConfigError, match=r'got "cuda:3"'):
        next(run(resumed_config(out, None, more), out, resume=True))
    config = resumed_config(out, None, [*more, "run.device=cpu"])
    assert [record.round for record in run(config, out, resume=True)] == [2]
