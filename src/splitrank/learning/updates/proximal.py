"""FedProx: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, arXiv 1812.06127.

A client whose texts differ from the others' trains away from them. A term of its loss pulls it back to the adapter that
the round started from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import LocalTerms, Parameters


@dataclass(frozen=True)
class ProximalPenalty:
    """A term of a client's loss that pulls what it trains towards the round's start: μ/2·‖w − w_start‖².

    It is part of the loss, and so of the gradient that is clipped, and no part of AdamW's decoupled decay. The pull is
    on the factors A and B, the paper's w being all numbers that are trained; a pull on their product would be another.
    Tensors that never leave the client are not pulled, since no shared value of them exists.

    Attributes:
        weight: μ, 0 or greater.
    """

    weight: float

    def __call__(self, parameters: Parameters, start: Adapter) -> Tensor:
        """Return the term.

        Args:
            parameters: what is trained, by name.
            start: the adapter that the client was sent.
        """
        squares = [
            (parameter - start.tensors[name].to(parameter.device)).square().sum()
            for name, parameter in parameters.items()
            if name in start.tensors
        ]
        return 0.5 * self.weight * torch.stack(squares).sum() if squares else torch.zeros(())


def proximal_terms(weight: float) -> tuple[LocalTerms, ...]:
    """Return what a pull of weight μ ≥ 0 adds to a client's steps: nothing at all for 0."""
    return (LocalTerms(penalty=ProximalPenalty(weight)),) if weight else ()
