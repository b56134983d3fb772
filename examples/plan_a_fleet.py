"""Which LoRA rank, and which clock, fits each client of a fleet? Needs only NumPy and splitrank.

Eight clients between 50 m and 2 km from a base station, with processors of 0.6 to 2 GHz, train RoBERTa-base. A round
may take five minutes and, on each client, 50 joules.

    python examples/plan_a_fleet.py
"""

import numpy as np

from splitrank import Affine, Problem, Workload, make_plan
from splitrank.planning.channel import path_loss_gain
from splitrank.planning.link import shannon_bps
from splitrank.units import noise_power_w

distance_m = np.array([50, 100, 200, 400, 800, 1000, 1500, 2000])
max_frequency_hz = np.array([0.6e9, 2e9, 1e9, 1.5e9, 0.8e9, 2e9, 1.5e9, 2e9])
everybody = range(len(distance_m))

# From distances to rates: path loss, thermal noise, and Shannon's formula.
gain, bandwidth_hz = path_loss_gain(distance_m), np.full(len(distance_m), 180e3)
uplink_bps = shannon_bps(bandwidth_hz, gain, 0.1, noise_power_w(-174, bandwidth_hz, noise_figure_db=5))
downlink_bps = shannon_bps(bandwidth_hz, gain, 0.2, noise_power_w(-174, bandwidth_hz, noise_figure_db=9))

# LoRA on query and value of three layers has 9,216 numbers per rank; they and the head go up and down as float32.
bits = Affine(constant=593_668 * 32, per_rank=9_216 * 32)

problem = Problem(
    workload=Workload(cycles=Affine(constant=1e11, per_rank=1e9), uplink_bits=bits, downlink_bits=bits),
    uplink_bps=uplink_bps,
    downlink_bps=downlink_bps,
    uplink_power_w=0.1,
    capacitance=3e-28,
    max_frequency_hz=max_frequency_hz,
    circuit_energy_j=1.0,
    energy_budget_j=50.0,
    latency_budget_s=300.0,
)
plan = make_plan(problem, require_all=False)

print(f"{plan.status}: rank {plan.common_rank} for all who can take part")
print("client      m  Mbit/s up  max rank  limited by    GHz  latency s  energy J")
for i in everybody:
    client = f"{i:6} {distance_m[i]:6} {uplink_bps[i] / 1e6:10.2f} {plan.max_rank[i]:9}  {plan.binding[i]:10}"
    cost = f"{plan.frequency_hz[i] / 1e9:7.3f} {plan.latency_s[i]:10.1f} {plan.energy_j[i]:9.2f}"
    print(client, cost if plan.participants[i] else " sits out")

why = plan.shortfalls
for i in np.flatnonzero(~plan.participants):
    print(f"client {i} lacks {why.constraint[i]}: rank 1 takes {why.needed[i]:.0f}, it has {why.available[i]:.0f}")

# One rank for all is the weakest client's. Where each may have its own, nobody is held back by it.
own = make_plan(problem, rank_policy="per-client", require_all=False)
print("each client at its own rank:", *own.rank)
