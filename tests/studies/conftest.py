"""A sweep on a tiny random encoder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tiny_sweep(tmp_path: Path, tiny_model, tiny_texts) -> Path:
    """A sweep file with two ranks and one seed."""
    path = tmp_path / "sweep.toml"
    path.write_text(
        f"""
base = "offline"
seeds = [1]
[set]
model.name = "{tiny_model()}"
model.max_length = 32
data.path = "{tiny_texts}"
federation.rounds = 2
budget.latency_s = 1e6
budget.energy_j = 1e9
[grid]
adapter.rank = [1, 3]
"""
    )
    return path


@pytest.fixture
def small_pages(request, monkeypatch):
    """Spare tests the megabytes of Plotly's script."""
    if "whole_page" not in request.fixturenames:
        monkeypatch.setattr("splitrank.studies.report_page.get_plotlyjs", lambda: "/* Plotly */")


@pytest.fixture
def whole_page():
    """Ask for pages as they are."""
