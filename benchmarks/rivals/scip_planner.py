"""The planner's problem as SCIP takes it: Bestuzheva et al., "Enabling research through the SCIP optimization suite
8.0", ACM TOMS 2023, a solver for mixed-integer nonlinear programs, through pyscipopt."""

from __future__ import annotations

from pyscipopt import Model

from splitrank.planning.problem import Problem
from splitrank.planning.workload import Affine


def rank_model(problem: Problem) -> Model:
    """P1 with one rank for all clients: time in units of T0, energy in units of E_0, τ = T_cmp.

    maximise r over integers, subject to, for every client, C|D|/f_max <= τ, τ + T_ul + T_dl <= T0 and
    Ω·(C|D|)³ <= W·τ²

    Rates must be above 0 and budgets finite.
    """
    model = Model()
    model.hideOutput()
    model.setParam("numerics/feastol", 1e-9)
    model.setParam("numerics/dualfeastol", 1e-9)
    work = problem.workload
    rank = model.addVar("rank", vtype="INTEGER", lb=1, ub=int(problem.rank_cap.min()))
    for i in range(problem.num_clients):
        full_speed = float(problem.max_frequency_hz[i]) * problem.deadline_s
        budget_j = float(problem.energy_budget_j[i])

        def parts(cost: Affine, scale: float, i: int = i) -> tuple[float, float]:
            return scale * float(cost.constant[i]), scale * float(cost.per_rank[i])

        up = parts(work.uplink_bits, 1 / float(problem.uplink_bps[i]))
        down = parts(work.downlink_bits, 1 / float(problem.downlink_bps[i]))
        airtime, airtime_per_rank = ((ups + downs) / problem.deadline_s for ups, downs in zip(up, down, strict=True))
        radio, radio_per_rank = (float(problem.uplink_power_w[i]) * seconds / budget_j for seconds in up)
        left = 1 - float(problem.circuit_energy_j[i]) / budget_j - radio
        power = float(problem.capacitance[i]) * float(problem.max_frequency_hz[i]) ** 3 * problem.deadline_s / budget_j
        tau = model.addVar(f"tau_{i}", lb=0, ub=1)
        cycles, cycles_per_rank = parts(work.cycles, 1 / full_speed)
        load = cycles + cycles_per_rank * rank
        model.addCons(load <= tau)
        model.addCons(tau + airtime + airtime_per_rank * rank <= 1)
        model.addCons(power * load**3 <= (left - radio_per_rank * rank) * tau**2)
        model.addCons(radio_per_rank * rank <= left)
        room = float(problem.memory_budget_bytes[i])
        if room < float("inf"):
            memory, memory_per_rank = parts(work.memory_bytes, 1 / room)
            model.addCons(memory + memory_per_rank * rank <= 1)
    model.setObjective(rank, "maximize")
    return model


def solved_rank(model: Model) -> int:
    """The optimum of a model that has been optimised, 0 where no rank fits."""
    return round(model.getObjVal()) if model.getStatus() == "optimal" else 0
