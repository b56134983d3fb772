"""Settings of a run: tables, their rules, and the layers they are read in.

``values`` kinds of values, ``conditions`` when a setting is read, ``tables`` and ``resources`` every setting,
``variants`` the tables of one variant, ``fields`` what a setting says of itself, ``rules`` between settings, ``layers``
reading and writing, ``paths`` settings that name files, ``problems`` broken rules as sentences, ``later`` what is
specified and not available yet, ``explain`` the documentation.
"""

from splitrank.config.layers import (
    PRESETS,
    config_from,
    config_of,
    flatten,
    is_preset,
    load_config,
    parse_overrides,
    plain_values,
    read_toml,
    to_toml,
    with_values,
)
from splitrank.config.paths import absolute_paths
from splitrank.config.tables import AdapterTable, Config, FederationTable
from splitrank.config.values import ByColumn, NoiseFigure, PerClient, Uniform

__all__ = [
    "PRESETS",
    "AdapterTable",
    "ByColumn",
    "Config",
    "FederationTable",
    "NoiseFigure",
    "PerClient",
    "Uniform",
    "absolute_paths",
    "config_from",
    "config_of",
    "flatten",
    "is_preset",
    "load_config",
    "parse_overrides",
    "plain_values",
    "read_toml",
    "to_toml",
    "with_values",
]
