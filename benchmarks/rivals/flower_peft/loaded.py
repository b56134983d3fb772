"""What server and clients both need: the task from its file, and the model, each once per process."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from benchmarks.rivals.federated_peft import Trainee, load_trainee
from benchmarks.rivals.task import Task

STYLE = "expert"


@cache
def read_task(file: str) -> Task:
    """Sizes, texts and labels, as the benchmark wrote them down."""
    return Task(**json.loads(Path(file).read_text()))


@cache
def loaded_trainee(file: str, threads: int) -> Trainee:
    """The model of this process, which from now on computes on that many threads."""
    torch.set_num_threads(threads)
    return load_trainee(read_task(file), STYLE)
