"""Going on with a run that was broken off: its settings, the checks that nothing else has changed, and its state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from splitrank.config import Config, absolute_paths, load_config, with_values
from splitrank.errors import ConfigError, InputError
from splitrank.federation.checkpoints import RAISABLE
from splitrank.federation.manifest import Manifest, check_unchanged, read_manifest
from splitrank.federation.run_folder import RunFolder, check_is_run
from splitrank.federation.state import State

_LOG = logging.getLogger("splitrank")


def resumed_config(path: Path, asked: Config | None, overrides: list[str]) -> Config:
    """Settings of a resumed run: the folder's own, with more rounds, a higher target or more patience where asked for.

    It may also compute on another device, as a run with ``run.device = "auto"`` does on another machine.

    Args:
        path: the run folder.
        asked: what the command line asks for, or None to take the folder's settings.
        overrides: ``--set`` arguments that apply to the folder's settings where ``asked`` is None.

    Raises:
        ConfigError: a setting other than those differs, or one of the first three is lowered.
    """
    check_is_run(path)
    saved = load_config(str(path / "config.toml"))
    if asked is None:
        asked = load_config(str(path / "config.toml"), overrides)
    # What a run resolves by itself is not the user's doing.
    resolved: dict[str, Any] = {}
    if asked.run.threads == 0:
        resolved["run.threads"] = saved.run.threads
    if asked.model.precision == "auto":
        resolved["model.precision"] = saved.model.precision
    if asked.model.num_labels is None:
        resolved["model.num_labels"] = saved.model.num_labels
    resolved |= absolute_paths(asked)
    if resolved:
        asked = with_values(asked, resolved)
    before, after = saved.model_dump(), asked.model_dump()
    problems = []
    for table, content in before.items():
        for key, value in content.items():
            wanted = after[table][key]
            if wanted == value:
                continue
            if (table, key) == ("run", "device"):
                continue
            if table == "federation" and key in RAISABLE and _goes_on(saved, key, wanted):
                continue
            rule = "the same or more" if key in RAISABLE else "the same"
            if key == "rounds" and saved.train.schedule == "linear":
                rule = "the same, since a linear train.schedule spans all rounds,"
            problems.append(f"{table}.{key} must be {rule} when a run is resumed: {value!r} in {path}, got {wanted!r}")
    if problems:
        raise ConfigError(problems)
    return asked


def _goes_on(saved: Config, key: str, wanted: Any) -> bool:
    """Return whether a run would go on for longer with another value of a raisable key, and may."""
    value = getattr(saved.federation, key)
    if key == "rounds":
        return bool(wanted > value) and saved.train.schedule == "constant"
    return value is not None and (wanted is None or bool(wanted > value))


def check_resumable(folder: RunFolder) -> None:
    """Refuse before any work what no splitrank of this version can go on with."""
    before = read_manifest(folder.path)
    if "baseline" in before:
        what = before["baseline"]
        raise InputError(f"--resume needs the folder of a run, got {folder.path} of {what} by splitrank 0.1.0")
    folder.checkpoints.check_format()


def resumed_state(folder: RunFolder, config: Config, manifest: Manifest) -> State | None:
    before = read_manifest(folder.path)
    check_unchanged(folder.path, before, "data", manifest["data"]["sha256"])
    check_unchanged(folder.path, before, "model", manifest["model"]["trunk_sha256"])
    for key, what in (("own_rule", "rule"), ("own_method", "method")):
        if before.get(key) != manifest.get(key):
            raise InputError(
                f"The {what} must be the one that the run in {folder.path} started with, "
                f"{before.get(key) or 'that of the settings'}, got {manifest.get(key) or 'that of the settings'}"
            )
    for key in ("versions", "hardware"):
        changed = [name for name, value in manifest[key].items() if before[key].get(name) != value]
        if changed:
            _LOG.warning(f"{', '.join(changed)} changed since the run started; from here on its bits may differ.")
    state = folder.checkpoints.load(config)
    resumed = [
        *(before["resumed"] if isinstance(before.get("resumed"), list) else []),
        {"utc": manifest["started_utc"], "after_round": state.round if state else None},
    ]
    folder.write_manifest({**before, "resumed": resumed})
    folder.write_config(config)
    if state is None:
        _LOG.info("No round was finished yet; starting from the beginning.")
    else:
        _LOG.info(f"Resuming after round {state.round}.")
    return state
