"""Where the encoder computes: the processor, one of NVIDIA's or AMD's cards, or Apple's GPU."""

from __future__ import annotations

import torch

from splitrank.errors import ConfigError


def available_devices() -> list[str]:
    """Return the devices of this machine that PyTorch can use, as ``run.device`` names them."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(["cuda"] if cards else []), *cards, *apple]


def resolve_device(name: str) -> torch.device:
    """Return the device that ``run.device`` names; ``"auto"`` is CUDA's first card where there is one, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    available = available_devices()
    if name == "auto":
        name = "cuda" if "cuda" in available else "cpu"
    if name not in available:
        raise ConfigError(
            [
                f'run.device must be one that PyTorch finds on this machine, {" or ".join(available)}, got "{name}"; '
                'try run.device = "auto"'
            ]
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return what computes there, of which the bits of a result depend."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    if device.type == "mps":
        return torch.backends.mps.get_name()
    return torch.cuda.get_device_name(device)
