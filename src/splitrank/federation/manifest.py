"""A run's manifest.json: when and how it started, with which versions, hardware, texts and weights."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from splitrank.config import Config
from splitrank.errors import InputError
from splitrank.federation.clients import Clients
from splitrank.federation.model import method_of, rule_of
from splitrank.learning.summary import summarise

Manifest = dict[str, Any]
"""The content of manifest.json."""

_PACKAGES = ("splitrank", "torch", "transformers", "peft", "datasets", "numpy", "scipy", "tokenizers", "safetensors")


def manifest_of(config: Config, clients: Clients) -> Manifest:
    """Return the manifest of a run that starts now."""
    return {
        "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "seed": config.run.seed,
        "threads": config.run.threads,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cpu_count": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "device": str(clients.model.encoder.model.device),
        },
        "data": {
            "source": clients.data.source,
            "sha256": clients.data.fingerprint,
            "train_texts": len(clients.data.train_texts),
            "test_texts": len(clients.data.test_texts),
            "labels": clients.data.label_names,
        },
        "model": {"location": clients.model.encoder.location, "trunk_sha256": clients.model.encoder.trunk_digest},
        "trunk_computed": clients.trunk_computed,
        **({"run_id": clients.run_id} if clients.run_id else {}),
        **_own_parts(clients),
        "data_summary": summarise(clients.data, clients.partition).to_json(),
    }


def _own_parts(clients: Clients) -> dict[str, str]:
    """Return a rule and a method that are not those of the settings, by name: resuming asks for them again."""
    own, rule, method = {}, clients.rule, clients.model.method
    if rule != rule_of(clients.config):
        own["own_rule"] = f"{rule.name} ({_named(rule.combine)})"
    if method != method_of(clients.config):
        own["own_method"] = f"{method} ({_named(type(method))})"
    return own


def _named(thing: Any) -> str:
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def read_manifest(path: Path) -> Manifest:
    """Return what the manifest.json of a run folder says.

    Raises:
        InputError: it is missing or says something else.
    """
    path = path / "manifest.json"
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(manifest[key], dict) for key in ("data", "model", "versions", "hardware")):
            raise ValueError
        if not all(isinstance(sha, str) for sha in (manifest["data"]["sha256"], manifest["model"]["trunk_sha256"])):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} must be the manifest of a run, got something else; start a new run") from None
    return manifest


def check_unchanged(path: Path, manifest: Mapping[str, Any], key: str, sha256: str) -> None:
    """Check that a run goes on with what it started with.

    Args:
        path: the run folder.
        manifest: what its manifest.json says.
        key: ``"data"`` or ``"model"``.
        sha256: of what there is now.

    Raises:
        InputError: texts or weights have changed.
    """
    what, digest = {"data": ("texts", "sha256"), "model": ("weights", "trunk_sha256")}[key]
    if manifest[key][digest] != sha256:
        raise InputError(
            f"The {what} must be those the run in {path} started with, but they have changed since "
            f"({key} {sha256[:12]} instead of {manifest[key][digest][:12]}); start a new run"
        )


def run_id_of(path: Path) -> str:
    """Return the name that a run through Flower gave itself; a folder that no state was saved in yet has none."""
    try:
        return str(json.loads((path / "manifest.json").read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return secrets.token_hex(16)


def largest_class_share(path: Path) -> float | None:
    """Return the share that the largest class has of a run's test texts; None for a run that did not record it."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return float(manifest["data_summary"]["largest_class_share"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
