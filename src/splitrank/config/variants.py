"""Tables within the tables: settings of one variant, read where another setting names it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from splitrank.config.values import BelowHalf, Count, NotNegative, Positive, PositiveShare, Share


class Table(BaseModel):
    """A table of settings; a field whose type is a table is a table within it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, serialize_by_alias=True)


class PrefixTable(Table):
    """The learned tokens of ``adapter.method = "prefix"``."""

    gate: bool = Field(
        False,
        description="adds the learned tokens to attention, each with a gate that starts at 0, so that nothing changes "
        "before training; without it they share one softmax with the text",
    )


class HetloraTable(Table):
    """How clients of ``federation.aggregation = "hetlora"`` give up ranks."""

    gamma: PositiveShare = Field(
        0.99,
        description="γ: the tail of a client's directions are those beyond γ·r; with 1 there is none and no rank falls",
    )
    lambda_: NotNegative = Field(
        0.01, alias="lambda", description="λ: weight of the tail's norm in a client's loss, which presses it down"
    )


class LoraA2Table(Table):
    """The adapter of ``federation.aggregation = "lora-a2"``, of which clients choose slices."""

    rank: Count = Field(
        8, description="r_G: rank of the global adapter, all of which is sent down; a client's rank is part of it"
    )
    learning_rate_ratio: Positive = Field(5.0, description="learning rate of lora_B over `train.learning_rate`")


class TrimmedMeanTable(Table):
    """How many values ``federation.aggregation = "trimmed-mean"`` leaves out."""

    fraction: BelowHalf = Field(
        0.2,
        description="β: of the K updates of a round the ⌊β·K⌋ smallest and the ⌊β·K⌋ largest values of every number "
        "are left out. Fewer clients than that may be wrong or hostile",
    )


class FedavgmTable(Table):
    """The steps of ``federation.server_optimizer = "fedavgm"``."""

    learning_rate: Positive = Field(1.0, description="η: length of a step against the momentum")
    momentum: Share = Field(
        0.9, description="β: share of the last momentum that is kept; with 0, and η = 1, the rule's result is taken"
    )


class AdaptiveTable(Table):
    """The steps of ``federation.server_optimizer = "fedadam"`` or ``"fedyogi"``."""

    learning_rate: Positive = Field(1e-2, description="η: how far a number moves in a round, about")
    beta1: Share = Field(0.9, description="β₁: share of the last mean of gradients that is kept")
    beta2: Share = Field(0.99, description="β₂: share of the last mean of squared gradients that is kept")
    tau: Positive = Field(1e-3, description="τ: the larger, the less the steps of different numbers are made alike")
