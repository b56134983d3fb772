"""Settings in layers: built-in defaults, then a preset or a TOML file, then ``--set key=value``; read, merged, written.

A file may begin with ``base = "offline"``: a preset, or another file, over which it goes. Without it, it goes over the
built-in defaults.
"""

from __future__ import annotations

import difflib
import logging
import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from splitrank.config.fields import settings_of, table_named, values_of, without_effect
from splitrank.config.problems import sentences, shown
from splitrank.config.rules import broken_rules
from splitrank.config.tables import Config
from splitrank.config.variants import Table
from splitrank.errors import ConfigError, InputError

PRESETS = ("offline", "plain", "paper", "edge")

EITHER_OR: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("data.name",), ("data.path",)),
    (("radio.bandwidth_hz",), ("radio.total_bandwidth_hz",)),
    (("radio.large_scale_gain",), ("radio.distance_m",)),
    (("radio.noise_power_w",), ("radio.noise_psd_dbm_hz", "radio.noise_figure_db")),
)
"""Naming a key of one side drops the other, whichever earlier layer it came from; the first side is the default."""

SIDE_DEFAULTS: Mapping[str, Any] = {
    "data.name": "fancyzhx/ag_news",
    "radio.bandwidth_hz": 1e6,
    "radio.large_scale_gain": 1e-3,
    "radio.noise_power_w": 1e-9,
    "radio.noise_psd_dbm_hz": -174.0,
    "radio.noise_figure_db": 0.0,
}
"""Values of an either/or side of which nothing is given."""

Flat = dict[str, Any]
"""Values by dotted key."""

Tables = dict[str, Any]
"""The same as nested tables."""

_POLICY = "planner.frequency_policy"
_LOG = logging.getLogger("splitrank")


def load_config(source: str = "offline", overrides: Sequence[str] = ()) -> Config:
    """Read a preset or a TOML file, put ``key=value`` overrides over it, and check everything.

    Args:
        source: a preset's name or a path. A file names only what differs from its base.
        overrides: ``--set`` arguments; values are TOML literals, what isn't TOML is taken as a string.

    Raises:
        ConfigError: one sentence for every broken rule.
        InputError: the source cannot be read, or an override is not key=value.

    Example:
        >>> load_config("paper", ["federation.rounds=3"]).federation.rounds
        3
    """
    return config_of(source, parse_overrides(overrides))


def config_of(source: str, *layers: Mapping[str, Any]) -> Config:
    """Read a preset or a TOML file and put layers of dotted keys over it, as :func:`load_config` does with texts.

    A key of the file that a later layer robs of its effect is dropped, as a preset's is; one without effect in the
    file itself is a broken rule.
    """
    flat, problems, in_file = _read_source(source)
    given = in_file
    if any(layers):
        given = _without_effect_alone(flat, in_file)
    for layer in layers:
        flat, more = _layer(flat, layer)
        problems += more
        given = given | set(layer)
    config = _checked(flat, given & set(flat), problems)
    for key in sorted((in_file - given) & set(without_effect(config))):
        _LOG.warning("%s of %s is not read: %s.", key, source, without_effect(config)[key])
    return config


def config_from(*layers: Mapping[str, Any]) -> Config:
    """Return settings from layers of dotted keys over the built-in defaults, checked."""
    flat: Flat = {}
    problems: list[str] = []
    for layer in layers:
        flat, more = _layer(flat, layer)
        problems += more
    return _checked(flat, set(), problems)


def with_values(config: Config, values: Flat) -> Config:
    """Return the same settings with some dotted keys replaced, checked anew."""
    flat, problems = _layer(flatten(plain_values(config)), values)
    return _checked(flat, set(), problems)


def _checked(flat: Mapping[str, Any], given: set[str], problems: Sequence[str]) -> Config:
    tables = unflatten(_with_defaults(flat))
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError([*problems, *sentences(error, tables)]) from None
    unread = without_effect(config)
    without = [
        f"{key} must have an effect when it is given, got a setting that is never read: {unread[key]}; leave it out"
        for key in settings_of()
        if key in given and key in unread
    ]
    if found := [*problems, *broken_rules(config), *without]:
        raise ConfigError(found)
    return config


def _without_effect_alone(flat: Mapping[str, Any], keys: set[str]) -> set[str]:
    """Return those of a file's keys that have no effect even without a layer over it; all where it is not valid."""
    try:
        return keys & set(without_effect(_checked(flat, set(), ())))
    except ConfigError:
        return keys


# ---- dotted keys and nested tables


def flatten(tables: Mapping[str, Any], root: type[Table] = Config) -> Flat:
    """Return dotted keys and values of nested tables; what is no table of ``root`` stays a value."""
    flat: Flat = {}
    for name, content in tables.items():
        inner = table_named(root, name)
        if inner is not None and isinstance(content, Mapping):
            flat |= {f"{name}.{key}": value for key, value in flatten(content, inner).items()}
        else:
            flat[name] = content
    return flat


def unflatten(flat: Mapping[str, Any], root: type[Table] = Config) -> Tables:
    """Return nested tables of dotted keys.

    Raises:
        ConfigError: a value where a table must be.
    """
    names = {".".join(key.split(".")[:depth]) for key in settings_of(root) for depth in range(1, key.count(".") + 1)}
    if no_tables := [f"{key} must be a table of keys, got {shown(flat[key])}" for key in flat if key in names]:
        raise ConfigError(no_tables)
    tables: Tables = {}
    for dotted, value in flat.items():
        parts = dotted.split(".")
        depths = [depth for depth in range(1, len(parts)) if ".".join(parts[:depth]) in names]
        depth = max(depths, default=min(1, len(parts) - 1))
        table = tables
        for name in parts[:depth]:
            table = table.setdefault(name, {})
        table[".".join(parts[depth:])] = value
    return tables


def parse_overrides(overrides: Sequence[str]) -> Flat:
    """Return the dotted keys and values of ``key=value`` texts.

    Raises:
        InputError: one is not key=value.
    """
    parsed: Flat = {}
    for key, value in map(_parse_override, overrides):
        parsed.update(
            flatten(unflatten({key: value})) if isinstance(value, dict) and "." in key else flatten({key: value})
        )
    return parsed


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, literal = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set must be key=value, got {text!r}; try --set federation.rounds=5")
    try:
        return key, tomllib.loads(f"value = {literal}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key, literal.strip()


# ---- layers


def _layer(base: Mapping[str, Any], added: Mapping[str, Any]) -> tuple[Flat, list[str]]:
    """Put one layer over another; problems name either/or pairs of which the layer names both sides."""
    merged, problems = dict(base), []
    for first, second in EITHER_OR:
        in_first = [key for key in first if key in added]
        in_second = [key for key in second if key in added]
        if in_first and in_second:
            problems.append(f"{in_first[0]} and {in_second[0]} must not both be given; leave one of them out")
        elif in_first or in_second:
            for key in second if in_first else first:
                merged.pop(key, None)
    if "budget.latency_s" in added and merged.get(_POLICY) == _default_policy(merged):
        merged.pop(_POLICY, None)  # it followed from the latency budget, which is another one now
    merged.update(added)
    return merged, problems


def _default_policy(flat: Mapping[str, Any]) -> str:
    """Return the frequency policy that is taken where none is given: the lowest frequency needs a time limit."""
    return "least-latency" if flat.get("budget.latency_s") == math.inf else "least-energy"


def _with_defaults(flat: Mapping[str, Any]) -> Flat:
    """Fill in the defaults that depend on what else is given."""
    filled = dict(flat)
    for first, second in EITHER_OR:
        side = second if any(key in filled for key in second) else first
        for key in side:
            if key in SIDE_DEFAULTS:
                filled.setdefault(key, SIDE_DEFAULTS[key])
    filled.setdefault(_POLICY, _default_policy(filled))
    return filled


# ---- files


def is_preset(source: str) -> bool:
    """Return whether a CONFIG argument names a preset rather than a file."""
    return source in PRESETS


def _read_source(source: str, readers: tuple[Path, ...] = ()) -> tuple[Flat, list[str], set[str]]:
    """Return the settings of a preset or file over its base, what is wrong with it, and the keys that it gives itself.

    Args:
        source: preset or path.
        readers: files that named it as their base, the last one first.
    """
    if is_preset(source):
        content = (resources.files("splitrank") / "presets" / f"{source}.toml").read_text(encoding="utf-8")
        return flatten(tomllib.loads(content)), [], set()
    path = Path(source)
    if not path.is_file():
        close = difflib.get_close_matches(Path(source).name, PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        what = f"base in {readers[0]}" if readers else "CONFIG"
        raise InputError(f"{what} must be a preset ({', '.join(PRESETS)}) or a TOML file, got {source!r}{hint}")
    if path.resolve() in readers:
        raise InputError(f"base in {readers[0]} must not lead back to {path}, got a circle; name a preset")
    tables = read_toml(path)
    base = tables.pop("base", None)
    own = flatten(tables)
    if base is None:
        return *_layer({}, own), set(own)
    if not isinstance(base, str):
        raise InputError(f"base in {path} must be a preset ({', '.join(PRESETS)}) or a TOML file, got {base!r}")
    below = base if is_preset(base) else str(path.parent / base)
    flat, problems, _ = _read_source(below, (path.resolve(), *readers))
    merged, more = _layer(flat, own)
    return merged, problems + more, set(own)


def read_toml(path: Path) -> Tables:
    """Return the content of a TOML file.

    Raises:
        InputError: it cannot be read; the sentence names it.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} must be a TOML file, got a syntax error: {error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} must be a TOML file in UTF-8, got other bytes") from None
    except OSError as error:
        raise InputError(f"{path} must be a readable file, got: {error.strerror}") from None


def plain_values(config: Config) -> Tables:
    """Return nested plain values, without settings that are left out or have no effect."""
    unread, dumped = without_effect(config), flatten(config.model_dump())
    return unflatten(
        {
            key: list(dumped[key]) if isinstance(dumped[key], tuple) else dumped[key]
            for key, value in values_of(config).items()
            if value is not None and key not in unread
        }
    )


def to_toml(config: Config) -> str:
    """Return the fully resolved configuration as TOML; loading it gives the same configuration back."""
    return tomli_w.dumps(plain_values(config))
