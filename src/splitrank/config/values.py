"""Kinds of values that settings may have: pydantic's constraints, each with its rule in words.

A value that breaks its constraints is refused with the rule's sentence, and the documentation prints the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic_core import CoreSchema, core_schema

from splitrank import placement


@dataclass(frozen=True)
class Rule:
    """The rule of a kind of value, as it follows "must be"; one setting may say it more closely than its kind."""

    words: str


@dataclass(frozen=True)
class OnePerClient:
    """Marks a value whose list has one entry for each client."""


class Uniform(BaseModel):
    """A number per client, drawn once per run from the uniform distribution on [low, high)."""

    model_config = ConfigDict(frozen=True)
    low: float
    high: float

    @model_serializer
    def _as_written(self) -> dict[str, list[float]]:
        return {"uniform": [self.low, self.high]}


PerClient = float | tuple[float, ...] | Uniform
"""A scalar for all clients, a list of ``num_clients`` numbers, or ``{uniform = [low, high]}``."""


def _tuple_of_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_ListRead = BeforeValidator(_tuple_of_list)


def _each(rule: str) -> str:
    return f"{rule}, a list of such numbers (one per client) or {{uniform = [low, high]}}"


@dataclass(frozen=True)
class _Number:
    """Makes of ``PerClient`` numbers of one kind; ``rule`` is that of one number."""

    kind: Any
    rule: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema."""
        one = handler.generate_schema(self.kind)
        several = core_schema.tuple_variable_schema(one)
        any_of = core_schema.union_schema([one, several, handler.generate_schema(Uniform)])
        read = core_schema.no_info_before_validator_function(self._with_uniform, any_of)
        return core_schema.no_info_after_validator_function(self._with_bounds, read)

    def _with_uniform(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return _tuple_of_list(value)
        bounds = value.get("uniform")
        if set(value) != {"uniform"} or not isinstance(bounds, list | tuple) or len(bounds) != 2:
            raise ValueError(_each(self.rule))
        return Uniform.model_construct(low=bounds[0], high=bounds[1])

    def _with_bounds(self, value: PerClient) -> PerClient:
        if not isinstance(value, Uniform):
            return value
        one = TypeAdapter(self.kind, config=ConfigDict(strict=True))
        try:
            low, high = one.validate_python(value.low), one.validate_python(value.high)
        except ValidationError:
            raise ValueError(_each(self.rule)) from None
        if math.isinf(high):
            raise ValueError(_each(self.rule))
        if low > high:
            raise ValueError("{uniform = [low, high]} with low at most high")
        return Uniform(low=low, high=high)


_POSITIVE = "a finite number greater than 0"
_NOT_NEGATIVE = "a finite number, 0 or greater"
_BUDGET = "a finite number greater than 0, or inf for no limit"
_DISTANCE = "a number of metres from 1 to 1e6"
_FINITE = Field(allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0), _FINITE, Rule(_POSITIVE)]
NotNegative = Annotated[float, Field(ge=0), _FINITE, Rule(_NOT_NEGATIVE)]
Budget = Annotated[float, Field(gt=0), Rule(_BUDGET)]
Finite = Annotated[float, _FINITE, Rule("a finite number")]
Share = Annotated[float, Field(ge=0, lt=1), Rule("a number from 0 up to, but not including, 1")]
PositiveShare = Annotated[float, Field(gt=0, le=1), Rule("a number greater than 0 and at most 1")]
BelowHalf = Annotated[float, Field(ge=0, lt=0.5), Rule("a number from 0 up to, but not including, 0.5")]
OpenShare = Annotated[float, Field(gt=0, lt=1), Rule("a number between 0 and 1, both excluded")]
Accuracy = Annotated[float, Field(gt=0, le=1), Rule("a share greater than 0 and at most 1, such as 0.9")]
NoiseDensity = Annotated[float, Field(ge=-250, le=0), Rule("a number of dBm/Hz from -250 to 0")]

Count = Annotated[int, Field(ge=1), Rule("a whole number, 1 or greater")]
CountOrZero = Annotated[int, Field(ge=0), Rule("a whole number, 0 or greater")]
ClassCount = Annotated[int, Field(ge=2), Rule("a whole number, 2 or greater")]
ClientCount = Annotated[int, Field(ge=1, le=10_000_000), Rule("a whole number from 1 to 10,000,000")]
TokenCount = Annotated[int, Field(ge=8), Rule("a whole number of tokens, 8 or greater")]
Device = Annotated[
    str, Field(pattern="^(auto|cpu|cuda(:[0-9]+)?|mps)$"), Rule("'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
]
ThreadCount = Annotated[int, Field(ge=0, le=1024), Rule("a whole number from 0 to 1024")]
CountPerClient = Annotated[
    Count | tuple[Count, ...],
    _ListRead,
    Rule("a whole number, 1 or greater, or a list of such numbers (one per client)"),
    OnePerClient(),
]

_Distance = Annotated[float, Field(ge=1, le=1e6)]
PositivePerClient = Annotated[PerClient, _Number(Positive, _POSITIVE), Rule(_each(_POSITIVE)), OnePerClient()]
NotNegativePerClient = Annotated[
    PerClient, _Number(NotNegative, _NOT_NEGATIVE), Rule(_each(_NOT_NEGATIVE)), OnePerClient()
]
BudgetPerClient = Annotated[PerClient, _Number(Budget, _BUDGET), Rule(_each(_BUDGET)), OnePerClient()]
DistancePerClient = Annotated[PerClient, _Number(_Distance, _DISTANCE), Rule(_each(_DISTANCE)), OnePerClient()]

Gains = Annotated[
    tuple[NotNegative, ...],
    _ListRead,
    Rule("a list of finite numbers, 0 or greater, one per client"),
    OnePerClient(),
]


class ByColumn(BaseModel):
    """A column of the data names the client of each training row."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    column: Annotated[str, Field(min_length=1)]

    def __str__(self) -> str:
        """Return it as it is written."""
        return f'{{column = "{self.column}"}}'


PartitionName = Literal["iid", "dirichlet", "dirichlet-clients", "shards", "pathological", "quantity"]
PartitionBy = Annotated[
    PartitionName | ByColumn,
    Rule(f'one of {", ".join(map(repr, get_args(PartitionName)))} or {{column = "..."}}, a column of the data'),
]


def _columns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _tuple_of_list(value)


_Name = Annotated[str, Field(min_length=1)]
Columns = Annotated[
    tuple[_Name, ...],
    Field(min_length=1),
    BeforeValidator(_columns),
    Rule('a column name or a list of them, such as ["title", "description"]'),
]


def _differing(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError('a list of column names that differ, such as ["label", "title", "description"]')
    return names


ColumnNames = Annotated[Columns, AfterValidator(_differing)]


def _encoding(value: str) -> str:
    try:
        "".encode(value)  # looks it up, and refuses what encodes no texts
    except (LookupError, ValueError):
        raise ValueError(_ENCODING) from None
    return value


_ENCODING = 'an encoding that Python knows, such as "gb18030" or "windows-1251"'
Encoding = Annotated[str, AfterValidator(_encoding), Rule(_ENCODING)]


def _separator(value: str) -> str:
    if value == "\\t":  # as a shell passes it on
        return "\t"
    if len(value) != 1 or value in '"\r\n\0':
        raise ValueError(_SEPARATOR)
    return value


_SEPARATOR = 'one character between fields, such as ";" or "\\t"'
Separator = Annotated[str, AfterValidator(_separator), Rule(_SEPARATOR)]


def _layers(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError('"last:N", "middle:N", "first:N", "all", or a list of layer indices')
    placement.parse_trained_layers(value)
    return value if isinstance(value, str) else tuple(value)


def _modules(value: Any) -> Any:
    if not isinstance(value, str | list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"one of {', '.join(placement.LINEAR_SETS)} or a list of module names")
    placement.target_linears(value)
    return value if isinstance(value, str) else tuple(value)


Layers = Annotated[
    str | tuple[int, ...],
    BeforeValidator(_layers),
    Rule('"last:N", "middle:N", "first:N", "all", or a list of layer indices, from 0'),
]
Modules = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_modules),
    Rule(f"one of {', '.join(placement.LINEAR_SETS)} or a list of module names"),
]


class NoiseFigure(BaseModel):
    """Receiver noise figures [dB]: the server receives the uplink, the client the downlink."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    uplink: Finite
    downlink: Finite


Decibels = Annotated[Finite | NoiseFigure, Rule("a finite number of dB or {uplink = number, downlink = number}")]
