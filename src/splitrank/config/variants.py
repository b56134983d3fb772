"""Tables within the tables: settings of one variant, read where another setting names it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from splitrank.config.values import BelowHalf, NotNegative, PositiveShare


class Table(BaseModel):
    """A table of settings; a field whose type is a table is a table within it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, serialize_by_alias=True)


class HetloraTable(Table):
    """How clients of ``federation.aggregation = "hetlora"`` give up ranks."""

    gamma: PositiveShare = Field(
        0.99,
        description="γ: the tail of a client's directions are those beyond γ·r; with 1 there is none and no rank falls",
    )
    lambda_: NotNegative = Field(
        0.01, alias="lambda", description="λ: weight of the tail's norm in a client's loss, which presses it down"
    )


class TrimmedMeanTable(Table):
    """How many values ``federation.aggregation = "trimmed-mean"`` leaves out."""

    fraction: BelowHalf = Field(
        0.2,
        description="β: of the K updates of a round the ⌊β·K⌋ smallest and the ⌊β·K⌋ largest values of every number "
        "are left out. Fewer clients than that may be wrong or hostile",
    )
