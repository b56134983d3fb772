"""Tables of what the clients have and what a round costs them: machines, links, budgets, the count of operations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from splitrank.config.conditions import Condition, left_out, one_of, other_than, quoted
from splitrank.config.values import (
    Budget,
    BudgetPerClient,
    Count,
    CountPerClient,
    Decibels,
    DistancePerClient,
    Gains,
    NoiseDensity,
    NotNegativePerClient,
    OpenShare,
    Positive,
    PositivePerClient,
    Uniform,
)
from splitrank.config.variants import Table
from splitrank.traits import RULE_TRAITS, personal_kinds

_PAPER, _FLOPS, _MEASURED = (one_of("workload.model", (model,)) for model in ("paper", "flops", "measured"))
_DRAWS_GAINS = left_out("radio.uplink_gain", "radio.downlink_gain")
_KEEPS = Condition(
    ("model.head", "federation.aggregation"),
    'model.head is "local" or federation.aggregation is '
    + quoted([name for name, rule in RULE_TRAITS.items() if rule.personal]),
    lambda head, rule: bool(personal_kinds(RULE_TRAITS[rule], head)),
)
_SHARES_HEAD = other_than("federation.aggregation", "fedsa")


class ClientTable(Table):
    """The clients' machines."""

    samples: CountPerClient = Field(40000, description="texts per client, for `plan`; `run` counts the real ones")
    capacitance: PositivePerClient = Field(
        Uniform(low=0.2e-25, high=1e-25), description="Ω, effective switched capacitance; Ω·f³ is power in W"
    )
    max_frequency_hz: PositivePerClient = Field(1e9, description="highest CPU frequency")
    circuit_energy_j: NotNegativePerClient = Field(50.0, description="ξ, energy per round beside computing and sending")
    flops_per_cycle: Annotated[PositivePerClient, _FLOPS] = Field(
        32.0, description="floating-point operations per cycle"
    )
    reference_frequency_hz: Annotated[PositivePerClient | None, _MEASURED] = Field(
        None, description="frequency at which the two keys below were measured"
    )
    seconds_per_sample: Annotated[PositivePerClient | None, _MEASURED] = Field(
        None, description="a of a + b·r, seconds per text and epoch at rank r"
    )
    seconds_per_sample_per_rank: Annotated[NotNegativePerClient | None, _MEASURED] = Field(
        None, description="b of a + b·r"
    )
    test_share: Annotated[OpenShare, _KEEPS] = Field(
        0.2, description="through Flower: what a client without a `test.*` of its own holds out for testing"
    )


class RadioTable(Table):
    """The links. Powers in W, gains and noise linear; only the noise density and figure are in dB."""

    bandwidth_hz: PositivePerClient | None = Field(None, description="each client's sub-band")
    total_bandwidth_hz: Positive | None = Field(
        None, description="a band that the clients share, see `planner.bandwidth`"
    )
    uplink_power_w: PositivePerClient = Field(Uniform(low=0.02, high=0.1), description="transmit power of a client")
    downlink_power_w: PositivePerClient = Field(1.0, description="transmit power towards a client")
    large_scale_gain: Annotated[PositivePerClient | None, _DRAWS_GAINS] = Field(
        None, description="mean power gain of the channel"
    )
    distance_m: Annotated[DistancePerClient | None, _DRAWS_GAINS] = Field(
        None, description="distance to the server; the path loss is 128.1 + 37.6 log10(d/km) dB"
    )
    fading: Annotated[Literal["rayleigh", "none"], _DRAWS_GAINS] = Field(
        "rayleigh", description="multiplies the mean gain anew every round"
    )
    uplink_gain: Gains | None = Field(None, description="fixes the gains, without a draw")
    downlink_gain: Gains | None = Field(None, description="fixes the gains, without a draw")
    noise_power_w: PositivePerClient | None = Field(None, description="noise in the sub-band")
    noise_psd_dbm_hz: NoiseDensity | None = Field(None, description="noise density, multiplied by the bandwidth")
    noise_figure_db: Decibels | None = Field(None, description="noise figure of the receivers, beside the density")
    downlink: Literal["unicast", "broadcast"] = Field(
        "unicast", description='`"broadcast"`: the whole band at the slowest participant\'s rate'
    )


class BudgetTable(Table):
    """The time and energy that a round may cost."""

    latency_s: Budget = Field(18000.0, description="T0, seconds of a round, for all clients")
    energy_j: BudgetPerClient = Field(25000.0, description="E0, joules of a round")


class WorkloadTable(Table):
    """How a round's operations and bits follow from the rank."""

    model: Literal["paper", "flops", "measured"] = Field(
        "paper",
        description='the paper\'s operation count; `"flops"`: true FLOPs and what is really sent; `"measured"`: from '
        "seconds per text, given in the table client or, through Flower, measured",
    )
    bits_per_parameter: Annotated[Positive, _PAPER] = Field(256.0, description="Q, bits of a parameter on the air")
    count_head: Annotated[bool, _PAPER, one_of("model.head", ("full", "out_proj")), _SHARES_HEAD] = Field(
        False, description="whether the head's bits are counted, too"
    )
    trunk: Annotated[Literal["prepared", "every-round"], _FLOPS] = Field(
        "prepared", description="the frozen trunk is computed once outside the rounds, or charged every round"
    )
    tokens_per_sample: Annotated[Count, _FLOPS] = Field(64, description="text length, for `plan`")
