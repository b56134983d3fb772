"""What server and clients both need: the task from its file, and the model, each once per process."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rivals.federated_peft import Trainee, load_trainee


@cache
def read_task(file: str) -> dict[str, Any]:
    """Sizes, texts and labels, as the benchmark wrote them down."""
    return json.loads(Path(file).read_text())


@cache
def loaded_trainee(file: str, threads: int) -> Trainee:
    """The model of this process, which from now on computes on that many threads."""
    torch.set_num_threads(threads)
    task = read_task(file)
    return load_trainee(
        task["location"],
        task["num_labels"],
        layers=task["layers"],
        rank=task["rank"],
        max_length=task["max_length"],
        seed=task["seed"],
        style=task["style"],
    )


def encoded(trainee: Trainee, texts: dict[str, Any]) -> tuple[list[list[int]], np.ndarray]:
    """Token ids and labels of one client's texts or of the test texts."""
    return trainee.tokenize(texts["texts"]), np.array(texts["labels"])
