"""The planner: channels and links, workloads and the costs of adapter methods, P1, its solvers and plans.

``channel``, ``link`` · ``flops``, ``costs``, ``workload`` · ``quantities`` (numbers that people give),
``problem``, ``limits``, ``solvers``, ``selection``,
``bandwidth``, ``bandwidth_per_client``, ``bandwidth_energy``, ``least_bands``, ``participation``, ``plan``, ``prices``.
"""
