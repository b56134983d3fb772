"""Solvers of P1: each returns every client's largest feasible rank, in 0..rank_cap.

``exact``, ``bisection``, ``branch_and_bound`` find the optimum; ``random_frequency`` is the paper's baseline.
"""
