"""Settings that name a file or folder."""

from __future__ import annotations

from pathlib import Path

from splitrank.config.tables import Config


def absolute_paths(config: Config) -> dict[str, str]:
    """Return the settings that name a folder or file, by dotted key, so that they do so from anywhere."""
    resolved = {}
    if config.data.path is not None:
        resolved["data.path"] = str(Path(config.data.path).expanduser().resolve())
    for key, name in (("data.name", config.data.name), ("model.name", config.model.name)):
        if name is not None and (key, name) != ("data.name", "docstrings") and Path(name).is_dir():
            resolved[key] = str(Path(name).resolve())
    return resolved
