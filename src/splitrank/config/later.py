"""Settings and values that are specified and that nothing answers to yet: refused as "not available yet"."""

from __future__ import annotations

LATER_KEYS = (
    "split",
    *(f"federation.{key}" for key in ("compression", "personal", "partition_parameters")),
    *(f"planner.{key}" for key in ("layers", "energy_policy")),
    *(f"radio.{key}" for key in ("servers", "antennas", "association", "access", "path_loss", "shadowing_db")),
    *(f"budget.{key}" for key in ("total_energy_j", "memory_bytes")),
    *(f"client.{key}" for key in ("jitter", "availability", "harvest_w", "device", "min_samples")),
    "run.jobs",
)

LATER_VALUES: dict[str, tuple[str, ...]] = {
    "adapter.method": ("adalora", "slora", "mola"),
    "planner.objective": ("accuracy",),
    "radio.fading": ("rician", "nakagami", "ergodic"),
}
