"""Problem P1 of Xie and Wen: what a round costs, what is allowed, and which ranks fit.

The costs are equations (1), (3), (4), (8), (9), (11) and (12), the constraints E1 to E4. Per client, with the time
left for computing S = T0 - T_ul - T_dl - T_o, where T_o is what a real exchange takes beside its bits, and the energy
left for it W = E_0 - ξ - E_ul - γ·C|D|, where γ is what a cycle takes at any clock, a rank fits exactly when

    S > 0,  W > 0,  f_lat = C|D| / S <= min(f_max, f_en),  f_en = sqrt(W / (Ω·C|D|))

f_lat grows with the rank and f_en falls, so the ranks that fit a client are 1..r_i*, its ``max_rank``. An infinite
budget is no limit: with T0 infinite f_lat is 0, and any frequency in (0, min(f_max, f_en)] will do.
"""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.link import Band
from splitrank.planning.quantities import Array, Range, as_array, as_arrays, broken
from splitrank.planning.workload import Affine, Rank, Workload

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Part = TypeVar("Part")

DEFAULT_RANK_CAP = 128

_RANGES = {
    "uplink_bps": Range("give bit/s, 0 for a client without a link"),
    "downlink_bps": Range("give bit/s, 0 for a client without a link"),
    "uplink_power_w": Range("give watts, not dBm", is_positive=True),
    "capacitance": Range("give Ω such that Ω·f³ is power in watts, 1e-28 for 0.1 W at 1 GHz"),
    "max_frequency_hz": Range("give hertz, 1e9 for 1 GHz", is_positive=True),
    "energy_budget_j": Range("give joules", is_positive=True, no_limit=True),
    "circuit_energy_j": Range("give joules"),
    "rank_cap": Range("give the largest rank that makes sense", least=1),
    "overhead_s": Range("give seconds"),
    "joules_per_cycle": Range("give joules"),
    "memory_budget_bytes": Range("give bytes", is_positive=True, no_limit=True),
    "rank_floor": Range("leave it out for 1", least=1),
    "rank_ceiling": Range("leave it out for rank_cap", least=0),  # 0 stands for one that was left out
}


_SNR = ("uplink_snr", "downlink_snr")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One round's instance of P1 for I clients: what the round costs them, and what they have for it.

    A quantity is one number for all clients, or one for each; afterwards it is an array of shape (I,). I is the length
    of those given for each client, and 1 where there are none.

    Two clients compute 1e9 cycles, and send and receive 1 Mbit, for each rank; the second has a slow uplink:

    >>> from splitrank import Affine, Problem, Workload
    >>> bits = Affine(0, 1e6)
    >>> problem = Problem(
    ...     workload=Workload(cycles=Affine(0, 1e9), uplink_bits=bits, downlink_bits=bits),
    ...     uplink_bps=[2e6, 1e5],
    ...     downlink_bps=2e6,
    ...     uplink_power_w=0.2,
    ...     capacitance=1e-27,
    ...     max_frequency_hz=1e9,
    ...     energy_budget_j=20.0,
    ...     latency_budget_s=60.0,
    ... )
    >>> problem.num_clients, problem.max_frequency_hz
    (2, array([1.e+09, 1.e+09]))

    Attributes:
        workload: cost of the round as a function of the rank.
        uplink_bps: s_ul [bit/s], >= 0.
        downlink_bps: s_dl [bit/s], >= 0.
        uplink_power_w: P_ul [W], > 0.
        capacitance: Ω, effective switched capacitance; Ω·f³ is power [W], >= 0.
        max_frequency_hz: f_max [Hz], > 0.
        energy_budget_j: E_0 [J], > 0, infinite for no limit.
        latency_budget_s: T0 [s], one for all clients, > 0, infinite for no limit.
        latency_margin: share of T0 kept as slack, one for all clients, in [0, 1); 0 if left out.
        circuit_energy_j: ξ, circuit energy of the round [J], >= 0; 0 if left out.
        rank_cap: the largest rank that a client could be given, the least of ``planner.max_rank`` and every adapted
            linear's d and k; int64, >= 1; 128 if left out. Each client's ``max_rank`` is found up to it.
        overhead_s: T_o, time of a round's exchange that no rate explains [s], >= 0; 0 in the paper and if left out.
        joules_per_cycle: γ, energy of a cycle whatever the clock [J], >= 0; 0 in the paper and if left out. A machine
            that cannot lower its clock, and rests instead, has Ω = 0 and γ = Ω'·f_max², Ω' being that of its power.
        rank_floor: the smallest rank at which a client may take part, int64, >= 1; 1 if left out.
        rank_ceiling: the largest that a plan gives it, int64, >= rank_floor; rank_cap if left out. Floor and ceiling
            are both the fixed rank where there is one.
        band: the band that the clients share, None where each has a sub-band of its own. The rates are those of equal
            shares; in a broadcast ``downlink_bps`` is what each client could receive on the whole band.
        memory_budget_bytes: what training may hold in memory [bytes], > 0, infinite for no limit; infinite if left out.

    Raises:
        ValueError: one line for each rule that is broken, all at once.
    """

    workload: Workload
    uplink_bps: FloatArray
    downlink_bps: FloatArray
    uplink_power_w: FloatArray
    capacitance: FloatArray
    max_frequency_hz: FloatArray
    energy_budget_j: FloatArray
    latency_budget_s: float
    latency_margin: float = 0.0
    circuit_energy_j: FloatArray = field(default_factory=lambda: np.zeros(()))
    rank_cap: IntArray = field(default_factory=lambda: np.full((), DEFAULT_RANK_CAP, np.int64))
    overhead_s: FloatArray = field(default_factory=lambda: np.zeros(()))
    joules_per_cycle: FloatArray = field(default_factory=lambda: np.zeros(()))
    rank_floor: IntArray = field(default_factory=lambda: np.ones((), np.int64))
    rank_ceiling: IntArray = field(default_factory=lambda: np.zeros((), np.int64))
    band: Band | None = None
    memory_budget_bytes: FloatArray = field(default_factory=lambda: np.full((), np.inf))

    def __post_init__(self) -> None:
        if not isinstance(self.workload, Workload):
            raise ValueError(f"Problem.workload must be a Workload, got {reprlib.repr(self.workload)}")
        given: dict[str, object] = {
            f"workload.{name}.{part}": value
            for name, cost in vars(self.workload).items()
            for part, value in vars(cost).items()
        }
        arrays, problems = as_arrays(given | {name: getattr(self, name) for name in _RANGES})
        for name, limits in _RANGES.items():
            if name in arrays:
                allowed = limits.allows(arrays[name])
                problems += broken(name, arrays[name], allowed, limits.rule, limits.hint)
        problems += [*_broken_costs(arrays), *_broken_budget(self.latency_budget_s, self.latency_margin)]
        problems += _broken_band(self.band, arrays)
        if not problems:
            self._take(arrays)
            reached = self.rank_ceiling >= self.rank_floor
            hint = "leave it out for rank_cap"
            problems = broken("rank_ceiling", self.rank_ceiling, reached, "at least rank_floor", hint)
        if problems:
            raise ValueError("\n".join(f"Problem.{problem}" for problem in problems))

    def _take(self, arrays: Mapping[str, Array]) -> None:
        """Put arrays of shape (I,) in the place of what was given."""
        for name, limits in _RANGES.items():
            dtype = np.float64 if limits.least is None else np.int64
            object.__setattr__(self, name, arrays[name].astype(dtype, copy=False))
        if not np.any(self.rank_ceiling):
            object.__setattr__(self, "rank_ceiling", np.maximum(self.rank_cap, self.rank_floor))
        costs = {
            name: Affine(*(arrays[f"workload.{name}.{part}"].astype(np.float64, copy=False) for part in vars(cost)))
            for name, cost in vars(self.workload).items()
        }
        object.__setattr__(self, "workload", Workload(**costs))
        if self.band is not None:
            uplink_snr, downlink_snr = (
                np.broadcast_to(getattr(self.band, name), self.uplink_bps.shape) for name in _SNR
            )
            object.__setattr__(self, "band", replace(self.band, uplink_snr=uplink_snr, downlink_snr=downlink_snr))

    @property
    def num_clients(self) -> int:
        """I."""
        return len(self.workload.cycles.constant)

    @property
    def deadline_s(self) -> float:
        """T0·(1 - margin) [s]: what the planner may use of the latency budget."""
        return self.latency_budget_s * (1.0 - self.latency_margin)


def _broken_costs(arrays: Mapping[str, Array]) -> list[str]:
    """Return sentences about costs that fall with the rank, or are below 0 at rank 1."""
    problems = []
    for name in (f"workload.{cost.name}" for cost in fields(Workload)):
        constant, per_rank = arrays.get(f"{name}.constant"), arrays.get(f"{name}.per_rank")
        if constant is not None and per_rank is not None:
            hint = "give what each further rank adds"
            problems += broken(f"{name}.per_rank", per_rank, per_rank >= 0, ">= 0", hint) or broken(
                f"{name}.constant + per_rank",
                *(constant + per_rank, constant + per_rank >= 0),
                *(">= 0, the cost at rank 1", "give a larger constant"),
            )
    return problems


def _broken_budget(latency_budget_s: object, latency_margin: object) -> list[str]:
    """Return sentences about what is one number for all clients."""
    budget_s, margin = as_array(latency_budget_s), as_array(latency_margin)
    problems = []
    if budget_s is None or budget_s.ndim or not budget_s > 0:
        rule = "one number of seconds > 0 for all clients, inf for no limit"
        problems.append(f"latency_budget_s must be {rule}, got {reprlib.repr(latency_budget_s)}")
    if margin is None or margin.ndim or not 0 <= margin < 1:
        rule = "one share for all clients, at least 0 and below 1"
        problems.append(f"latency_margin must be {rule}, got {reprlib.repr(latency_margin)}; 0 keeps no slack")
    return problems


def _broken_band(band: object, arrays: Mapping[str, Array]) -> list[str]:
    """Return sentences about a band that is none, or is not that of these clients."""
    if band is None:
        return []
    if not isinstance(band, Band):
        return [f"band must be a Band, got {reprlib.repr(band)}; leave it out where each has a sub-band of its own"]
    num_clients = max((len(values) for values in arrays.values()), default=1)
    found = {name: len(getattr(band, name)) for name in _SNR}
    return [
        f"band.{name} must have one number for each of {num_clients} clients, got {length}"
        for name, length in found.items()
        if length not in (1, num_clients)
    ]


def unchecked(part: Part, **values: Any) -> Part:
    """Return a frozen dataclass with other values, which must be as right as those that it has.

    To check the arrays of a million clients anew takes longer than a step of the searches that try such values.
    """
    other = copy.copy(part)
    for name, value in values.items():
        object.__setattr__(other, name, value)
    return other


def subproblem(problem: Problem, clients: IntArray | slice) -> Problem:
    """Return the problem of some clients alone; none of the constraints joins them to the others."""
    return _chosen(problem, clients)


_NESTED = (Workload, Affine, Band)


def _chosen(part: Part, clients: IntArray | slice) -> Part:
    """Return the same nested dataclass with some entries of each of its arrays."""
    values = vars(part)
    chosen: dict[str, object] = {
        name: value[clients] for name, value in values.items() if isinstance(value, np.ndarray)
    }
    chosen |= {name: _chosen(value, clients) for name, value in values.items() if isinstance(value, _NESTED)}
    return unchecked(part, **chosen)


def compute_s(problem: Problem, rank: Rank, frequency_hz: FloatArray) -> FloatArray:
    """T_cmp = C|D| / f [s], equation (1), shape (I,); 0 where there is nothing to compute, infinite at frequency 0."""
    cycles = problem.workload.cycles(rank)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((cycles == 0) & (frequency_hz == 0), 0.0, cycles / frequency_hz)


def on_air_s(bits: FloatArray, rate_bps: FloatArray) -> FloatArray:
    """Return the time that bits take [s]; infinite at rate 0, but 0 for no bits."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        time_s = bits / rate_bps
    return time_s if np.all(rate_bps) else np.where(bits == 0, 0.0, time_s)


def uplink_s(problem: Problem, rank: Rank) -> FloatArray:
    """T_ul = M·Q / s_ul [s], equation (4), shape (I,); infinite at rate 0."""
    return on_air_s(problem.workload.uplink_bits(rank), problem.uplink_bps)


def downlink_s(problem: Problem, rank: Rank) -> FloatArray:
    """T_dl = M·Q / s_dl [s], equation (9), shape (I,); infinite at rate 0."""
    return on_air_s(problem.workload.downlink_bits(rank), problem.downlink_bps)


def latency_s(problem: Problem, rank: Rank, frequency_hz: FloatArray) -> FloatArray:
    """T = T_cmp + T_ul + T_dl + T_o [s], equation (11) and what no rate explains, shape (I,)."""
    airtime_s = uplink_s(problem, rank) + downlink_s(problem, rank)
    return compute_s(problem, rank, frequency_hz) + airtime_s + problem.overhead_s


def energy_j(problem: Problem, rank: Rank, frequency_hz: FloatArray) -> FloatArray:
    """E = (Ω·f² + γ)·C|D| + P_ul·T_ul + ξ [J], equations (3), (8), (12) and what no clock saves, shape (I,)."""
    cycles = problem.workload.cycles(rank)
    # No clock is infinite; the formula's may be, where there is no time left, and so may be what it takes.
    with np.errstate(invalid="ignore", over="ignore"):
        compute_j = problem.capacitance * cycles * frequency_hz**2 + problem.joules_per_cycle * cycles
    return compute_j + problem.uplink_power_w * uplink_s(problem, rank) + problem.circuit_energy_j


def compute_slack(problem: Problem, rank: Rank) -> tuple[FloatArray, FloatArray]:
    """Return what the radio and the circuits leave for computing.

    S = T0·(1 - margin) - T_o - T_ul - T_dl,  W = E_0 - ξ - P_ul·T_ul - γ·C|D|

    Returns:
        S [s] and W [J], shape (I,) each; negative or infinitely so where the radio alone is too much, NaN where that
        takes forever and there is no limit, which no comparison lets pass.
    """
    up_s = uplink_s(problem, rank)
    clockless_j = problem.joules_per_cycle * problem.workload.cycles(rank)
    with np.errstate(invalid="ignore"):
        spare_j = problem.energy_budget_j - problem.circuit_energy_j - problem.uplink_power_w * up_s - clockless_j
        spare_s = problem.deadline_s - problem.overhead_s - up_s - downlink_s(problem, rank)
    return spare_s, spare_j


def feasible(problem: Problem, rank: Rank) -> BoolArray:
    """Return whether some frequency lets the client finish this rank in time and within its energy.

    S > 0,  W > 0,  C|D| <= f_max·S,  Ω·(C|D|)³ <= W·S²,  memory <= M_0

    E1 to E3 with the frequency eliminated and multiplied out, so that a rate of 0 needs no special case; memory is a
    departure, which the paper does not count.

    Args:
        problem: the round.
        rank: r, shape (I,) or one for all, >= 1; a real rank is checked by the same formulas.

    Returns:
        bool, shape (I,).
    """
    cycles = problem.workload.cycles(rank)
    spare_s, spare_j = compute_slack(problem, rank)
    with np.errstate(invalid="ignore", over="ignore"):
        in_time = cycles <= problem.max_frequency_hz * spare_s
        needed = problem.capacitance * cycles * cycles**2
        in_energy = (needed <= spare_j * spare_s**2) & (needed < np.inf)  # beyond a float is beyond no limit, too
    result: BoolArray = (spare_s > 0) & (spare_j > 0) & in_time & in_energy
    if np.all(np.isinf(problem.memory_budget_bytes)):
        return result
    return result & (problem.workload.memory_bytes(rank) <= problem.memory_budget_bytes)


def memory_rank(problem: Problem) -> FloatArray:
    """Return the largest real rank with which training stays within its memory, infinite without a limit, shape (I,).

    (M_0 - constant)/per_rank, where rank r takes constant + per_rank·r
    """
    memory = problem.workload.memory_bytes
    left_bytes = problem.memory_budget_bytes - memory.constant
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(memory.per_rank > 0, left_bytes / memory.per_rank, np.where(left_bytes >= 0, np.inf, 0.0))


def frequency_range_hz(problem: Problem, rank: Rank) -> tuple[FloatArray, FloatArray]:
    """Frequencies at which the client keeps to its budgets at this rank.

    [f_lat, min(f_max, f_en)],  f_lat = C|D| / S,  f_en = sqrt(W / (Ω·C|D|))

    Args:
        problem: the round.
        rank: r, shape (I,) or one for all, >= 1.

    Returns:
        lower and upper end [Hz], shape (I,) each. Where the rank is infeasible the ends are still the formulas'
        (f_lat is infinite if S <= 0, f_en is 0 if W <= 0) and the lower end exceeds the upper one, but for rounding.
        Frequency 0 belongs to no range: the lower end may be 0 where T0 is infinite or there is nothing to compute,
        and a range that ends at 0 is empty. Memory has no say in it.
    """
    cycles = problem.workload.cycles(rank)
    spare_s, spare_j = compute_slack(problem, rank)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        low_hz = np.where(spare_s > 0, cycles / spare_s, np.inf)
        high_hz = np.where(spare_j > 0, np.sqrt(spare_j / (problem.capacitance * cycles)), 0.0)
    high_hz = np.minimum(high_hz, problem.max_frequency_hz)
    # Where the interval is nearly a point, rounding may turn round its ends; the kernel has the last word.
    low_hz = np.where(feasible(problem, rank), np.minimum(low_hz, high_hz), low_hz)
    return low_hz, high_hz


def round_to_feasible(guess: FloatArray, cap: IntArray, fits: Callable[[IntArray], BoolArray]) -> IntArray:
    """Make an integer optimum of a real one: check r, then r + 1.

    Args:
        guess: real estimate of each client's largest feasible rank, shape (I,); NaN counts as 0.
        cap: largest rank allowed, shape (I,).
        fits: whether ranks of shape (I,) fit; true up to some rank, false above it.

    Returns:
        the largest r in 1..cap that fits, 0 if none, shape (I,). A guess that rounding has left off by a few is
        walked to it one rank at a time.
    """
    rank = np.floor(np.fmin(np.fmax(guess, 0.0), cap)).astype(np.int64)
    while True:
        down = (rank > 0) & ~fits(np.maximum(rank, 1))
        up = ~down & (rank < cap) & fits(rank + 1)
        if not np.any(down | up):
            return rank
        rank = rank + up - down
