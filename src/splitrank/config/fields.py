"""Every setting by its dotted key: what its field says of rule, default, conditions and description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from splitrank.config.conditions import Condition
from splitrank.config.tables import Config
from splitrank.config.values import OnePerClient, Rule
from splitrank.config.variants import Table


@dataclass(frozen=True)
class Setting:
    """All that is known of one setting.

    Attributes:
        key: dotted.
        rule: which values it may have, as it follows "must be".
        default: its value where nothing is given; None where it is left out.
        description: what it does.
        conditions: all of them must hold for it to be read.
        per_client: whether a list has one entry for each client.
    """

    key: str
    rule: str
    default: Any
    description: str
    conditions: tuple[Condition, ...]
    per_client: bool


def table_of(field: FieldInfo) -> type[Table] | None:
    """Return the table that a field is, None for a value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Table)), None)


def table_named(root: type[Table], name: str) -> type[Table] | None:
    """Return the table within a table that has a name in TOML, None where that is no table."""
    found = (table_of(field) for own, field in root.model_fields.items() if (field.alias or own) == name)
    return next(found, None)


@cache
def settings_of(root: type[Table] = Config) -> Mapping[str, Setting]:
    """Return every setting of the tables, by dotted key, in their order."""
    return dict(_walk(root, "", ()))


def _walk(table: type[Table], prefix: str, above: tuple[Condition, ...]) -> Iterator[tuple[str, Setting]]:
    for name, field in table.model_fields.items():
        key = prefix + (field.alias or name)
        metadata = list(_metadata(field))
        conditions = (*above, *(one for one in field.metadata if isinstance(one, Condition)))
        inner = table_of(field)
        if inner is not None:
            yield from _walk(inner, f"{key}.", conditions)
            continue
        yield (
            key,
            Setting(
                key=key,
                rule=next((one.words for one in metadata if isinstance(one, Rule)), _rule_of(field.annotation)),
                default=field.get_default(call_default_factory=True),
                description=field.description or "",
                conditions=conditions,
                per_client=any(isinstance(one, OnePerClient) for one in metadata),
            ),
        )


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Yield what a field's annotation carries, its own first, then that of a kind within a union."""
    yield from field.metadata
    for kind in get_args(field.annotation):
        if get_origin(kind) is Annotated:
            yield from kind.__metadata__


def _rule_of(annotation: Any) -> str:
    """Return the rule of a plain type; "or None" is said by leaving a setting out."""
    if get_origin(annotation) is Literal:
        shown = [repr(value) for value in get_args(annotation)]
        return f"one of {', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
    if annotation in (bool, bool | None):
        return "true or false"
    return "a text"


def values_of(config: Table) -> dict[str, Any]:
    """Return the value of every setting by dotted key, as the program sees it."""
    return dict(_values(config, ""))


def _values(table: Table, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(table).model_fields.items():
        value, inner = getattr(table, name), table_of(field)
        if inner is None:
            yield prefix + (field.alias or name), value
        elif value is not None:
            yield from _values(value, f"{prefix}{field.alias or name}.")


def without_effect(config: Table) -> dict[str, str]:
    """Return the settings that these settings never read, each with the reason."""
    values = values_of(config)
    reasons: dict[str, str] = {}
    for setting in settings_of(type(config)).values():
        failed = next((one for one in setting.conditions if not one.holds(values)), None)
        if failed is not None and setting.key in values:
            reasons[setting.key] = f"it is read where {failed.words}, and {failed.found(values)}"
    return reasons
