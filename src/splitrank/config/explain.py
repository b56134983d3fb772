"""The settings' documentation, from their own descriptions: ``splitrank config explain KEY`` and docs/settings.md.

docs/settings.md is written by ``python -m splitrank.config.explain > docs/settings.md``.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from typing import Any

import tomli_w

from splitrank.config.fields import Setting, settings_of, table_of
from splitrank.config.layers import EITHER_OR, PRESETS, SIDE_DEFAULTS
from splitrank.config.problems import unknown_key
from splitrank.config.tables import Config
from splitrank.errors import InputError

_PRESETS = ", ".join(f"`{name}`" for name in PRESETS)
_INTRODUCTION = f"""\
# Settings

For all readers who write a settings file. `splitrank config explain KEY` prints the entry of one key or table.

A configuration is a preset ({_PRESETS}) or a TOML file; `--set table.key=value` changes one setting of either. \
A file may begin with `base = "offline"`, which names a preset, or another file relative to it, whose settings it \
changes. Without it, a setting that the file leaves out has the default below, which is the paper's number where the \
paper gives one. `splitrank config show CONFIG` prints the settings in force, and `splitrank config check CONFIG` \
reports every broken rule at once. A setting that would have no effect is refused.

"Per client" means one number for all, a list with one for each, or `{{uniform = [low, high]}}`, drawn once per run by \
seed. [methods.md](methods.md) compares the adapter methods and the aggregation rules; [planner.md](planner.md) has \
examples without budgets and from measurements; [data.md](data.md) says how files are read.
"""


def explain(key: str) -> str:
    """Return what is known of a setting, or of all settings of a table, as plain text.

    Raises:
        InputError: there is no such setting and no such table.
    """
    settings = settings_of()
    if key in settings:
        return "\n".join(_plain_lines(settings[key]))
    within = [setting for name, setting in settings.items() if name.startswith(f"{key}.")]
    if not within:
        raise InputError(_unknown(key))
    return "\n\n".join("\n".join(_plain_lines(setting)) for setting in within)


def _unknown(key: str) -> str:
    tables = difflib.get_close_matches(key, Config.model_fields, n=1) if "." not in key else []
    return f"{key} must be a key or a table, got neither; did you mean {tables[0]}?" if tables else unknown_key(key)


def _plain_lines(setting: Setting) -> Iterator[str]:
    yield setting.key
    facts = [f"must be {_values(setting)}", f"default: {_default(setting)}", *_notes(setting)]
    for text in (setting.description.replace("`", ""), *facts):
        yield textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ")


def settings_page() -> str:
    """Return docs/settings.md."""
    parts = [_INTRODUCTION]
    for name, field in Config.model_fields.items():
        table = table_of(field)
        assert table is not None
        parts.append(f"\n## {name}\n\n{table.__doc__}\n\n| key | default | must be | what |\n|---|---|---|---|\n")
        parts += [_row(setting) for key, setting in settings_of().items() if key.startswith(f"{name}.")]
    return "".join(parts)


def _row(setting: Setting) -> str:
    what = ". ".join([setting.description, *(note[0].upper() + note[1:] for note in _notes(setting))])
    cells = [f"`{setting.key}`", _code(_default(setting)), _values(setting), what]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _code(default: str) -> str:
    return default if default == "left out" else f"`{default}`"


def _values(setting: Setting) -> str:
    rule = setting.rule
    if setting.per_client and "{uniform" in rule:
        return f"{rule.partition(', a list of such')[0]}; per client"
    return rule


def _default(setting: Setting) -> str:
    value = SIDE_DEFAULTS.get(setting.key, setting.default) if _is_default_side(setting.key) else setting.default
    return "left out" if value is None else _as_toml(value)


def _is_default_side(key: str) -> bool:
    return any(key in first for first, _ in EITHER_OR)


def _as_toml(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_as_toml(item)}' for name, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, float):
        return f"{value:g}".replace("e+0", "e").replace("e-0", "e-")
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()


def _notes(setting: Setting) -> Iterator[str]:
    """Yield what else must be said: conditions, and the other side of a pair."""
    for sides in EITHER_OR:
        for side, other in (sides, sides[::-1]):
            if setting.key in side:
                yield f"naming it drops {' and '.join(other)}, and the other way round"
    if setting.conditions:
        yield f"read where {' and '.join(condition.words for condition in setting.conditions)}"


if __name__ == "__main__":
    print(settings_page(), end="")
