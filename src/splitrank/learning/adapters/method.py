"""Adapter methods: what is put into an encoder's trained layers, and how it is loaded, read and resized.

A method says how it changes the model and which parameters it trains. All else is written once, over these: round 0's
state, loading and reading an adapter, the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from splitrank.learning.adapters.adapter import Adapter, is_ranked, shape_at_rank
from splitrank.learning.adapters.merged import load_merged
from splitrank.learning.adapters.peft_lora import declare
from splitrank.learning.adapters.selection import Index, Select, is_nothing
from splitrank.learning.encoder import Encoder, copy_from_file
from splitrank.learning.families import Family
from splitrank.learning.forward import is_packable, packed_logits, reference_logits
from splitrank.learning.layer import num_rows
from splitrank.traits import FACTORS, MERGED_KINDS, TRAINED_ADAPTER, Distribution, MethodTraits

Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class LocalTerms:
    """Additions of a method or a rule to a client's steps.

    Attributes:
        penalty: (parameters by name, the adapter started from) → a term of the loss.
        after_backward: called with the parameters by name, their gradients set and not clipped yet.
        rate: name of a parameter → its learning rate over that of the settings, > 0.
    """

    penalty: Callable[[Parameters, Adapter], Tensor] | None = None
    after_backward: Callable[[Parameters], None] | None = None
    rate: Callable[[str], float] | None = None


NO_TERMS = LocalTerms()


@runtime_checkable
class Method(Protocol):
    """An adapter method: a frozen dataclass of its settings."""

    @property
    def name(self) -> str:
        """Return the name by which the settings call it."""

    @property
    def traits(self) -> MethodTraits:
        """Its kinds, what a change of rank keeps, and its export."""

    @property
    def terms(self) -> LocalTerms:
        """Return its additions to a client's steps."""

    def attach(self, encoder: Encoder) -> PeftModel | None:
        """Put the method into the trained layers of a freshly loaded encoder, at rank 1 and with zero effect.

        Returns:
            PEFT's model around the encoder's, where PEFT has the method.
        """

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        """Bring the encoder to a rank; return what is trained, by ``"<kind>/<path>"``, in training order."""

    def scaling_at(self, rank: int) -> float:
        """Return s of the product s·B·A at a rank, > 0."""

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        """Bring an adapter to another rank, keeping what the traits' contract says."""


@dataclass(frozen=True, eq=False)
class AdaptedEncoder:
    """An encoder with a method in its trained layers, and the forward pass that serves both.

    Attributes:
        encoder, method: what was put together.
        peft_model: PEFT's view of the same weights; None for a method without PEFT.
        head: path → parameter of the head, whether trained or not.
        forward: the packed forward pass where it honours all that the method changes, else the reference.
    """

    encoder: Encoder
    method: Method
    peft_model: PeftModel | None
    head: Mapping[str, nn.Parameter]
    forward: Callable[[Encoder, Tensor, Tensor], Tensor]

    def logits(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Return class scores from the trunk's output; see :func:`forward.packed_logits`."""
        return self.forward(self.encoder, hidden, lengths)


def attach(encoder: Encoder, method: Method) -> AdaptedEncoder:
    """Put a method into a freshly loaded encoder, whose model is changed in place.

    Raises:
        TypeError: the forward pass would leave something out of what the method trains.
    """
    peft_model = method.attach(encoder)
    encoder.model.requires_grad_(False)
    head = _head_parameters(encoder.model, encoder.family)
    trained = method.parameters(encoder, 1, method.scaling_at(1))
    for parameter in trained.values():
        parameter.requires_grad_()
    packed = is_packable(encoder, [*trained.values(), *head.values()])
    if packed:
        encoder.cast_and_fuse_qkv(range(encoder.cut_layer, encoder.num_layers))
    copy_from_file(encoder)
    adapted = AdaptedEncoder(encoder, method, peft_model, head, packed_logits if packed else reference_logits)
    _check_all_is_trained(adapted, trained)
    encoder.model.requires_grad_(False)
    return adapted


def _head_parameters(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    found = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in family.head_modules:
            own = module.modules_to_save[TRAINED_ADAPTER] if isinstance(module, ModulesToSaveWrapper) else module
            found.update({f"{path}.{name}": parameter for name, parameter in own.named_parameters()})
    return found


def _check_all_is_trained(adapted: AdaptedEncoder, trained: Mapping[str, nn.Parameter]) -> None:
    """Let two short texts of random states through, and see that every parameter of the method gets a gradient."""
    encoder = adapted.encoder
    if not trained:
        return
    lengths = torch.tensor([5, 3])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        states = torch.randn(num_rows(lengths), encoder.hidden_size)
        logits = adapted.logits(states.to(encoder.model.device, encoder.precision), lengths)
        gradients: Sequence[Tensor | None] = [None] * len(trained)
        if logits.requires_grad:
            gradients = torch.autograd.grad(logits.sum(), list(trained.values()), allow_unused=True)
    ignored = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if ignored:
        raise TypeError(f"the forward pass must use all that {adapted.method.name} trains, but ignores {ignored[0]}")


def trained_head(adapted: AdaptedEncoder, policy: str) -> list[str]:
    """Return the names ``"head/<path>"`` of the head's parameters that ``model.head`` trains."""
    if policy == "frozen":
        return []
    last = f"{adapted.encoder.family.last_linear}."
    return [f"head/{path}" for path in adapted.head if policy != "out_proj" or path.startswith(last)]


def initial(adapted: AdaptedEncoder, head: Sequence[str]) -> Adapter:
    """Return the adapter of round 0: rank 0, all else as it was initialised.

    Args:
        adapted: as :func:`attach` made it, nothing loaded yet.
        head: names of the head's parameters that are trained and shared.
    """
    method = adapted.method
    tensors = {}
    for name, parameter in method.parameters(adapted.encoder, 1, method.scaling_at(1)).items():
        tensor = parameter.detach().cpu().clone()
        tensors[name] = tensor.new_zeros(shape_at_rank(name, tuple(tensor.shape), 0)) if is_ranked(name) else tensor
    heads = {name: adapted.head[name.removeprefix("head/")].detach().cpu().clone() for name in head}
    return Adapter(0, method.scaling_at(1), {**tensors, **heads})


@torch.no_grad()
def load(
    adapted: AdaptedEncoder, adapter: Adapter, personal: Mapping[str, Tensor] | None = None
) -> dict[str, nn.Parameter]:
    """Put an adapter into the model and return what is trained, by name, in training order.

    PEFT has no rank 0, so the zero adapter goes in as one zero direction where that has no effect.

    Args:
        adapted: as :func:`attach` made it.
        adapter: of the model's shapes; its rank and scaling become the model's.
        personal: tensors that are trained but not shared, such as a local head.

    Raises:
        TypeError: a tensor that the model has no place for, or of another shape.
    """
    method, rank = adapted.method, _rank_in_model(adapted.method, adapter.rank)
    parameters = method.parameters(adapted.encoder, rank, adapter.scaling)
    if adapted.peft_model is not None:
        declare(adapted.peft_model, rank, adapter.scaling)
    merged = adapter.only(*MERGED_KINDS)
    if method.traits.kinds == FACTORS:
        load_merged(adapted.encoder, adapter)
    elif merged:
        raise TypeError(f"a method with merged parts must be LoRA, got {method.name} with {min(merged)}")
    tensors = {**adapter.tensors, **(personal or {})}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in merged}
    head = {f"head/{path}": parameter for path, parameter in adapted.head.items()}
    for name, parameter in head.items():
        parameter.requires_grad_(name in tensors)
    parameters |= {name: parameter for name, parameter in head.items() if name in tensors}
    if tensors.keys() != parameters.keys():
        name = min(tensors.keys() ^ parameters.keys())
        raise TypeError(f"an adapter must have the tensors of {method.name} and no others, got a difference in {name}")
    for name, parameter in parameters.items():
        if adapter.rank == 0 and is_ranked(name):
            parameter.zero_()
        elif tensors[name].shape == parameter.shape:
            parameter.copy_(tensors[name])
        else:
            shapes = f"{tuple(parameter.shape)}, got {tuple(tensors[name].shape)}"
            raise TypeError(f"{name} must have the shape {shapes}")
        parameter.requires_grad_()
    return parameters


def _rank_in_model(method: Method, rank: int) -> int:
    """Return the rank that a model is brought to for an adapter's; a learned token has an effect even if it is zero."""
    return rank if method.traits.contract == "once" else max(rank, 1)


def freeze_unselected(
    parameters: Mapping[str, nn.Parameter], select: Select, client: int, turn: int
) -> tuple[dict[str, nn.Parameter], dict[str, Index]]:
    """Keep the parameters that a client trains in a turn, and freeze the others.

    Returns:
        the trained parameters, in their order; and the index of each that is selected in part.
    """
    trained, partly = {}, {}
    for name, parameter in parameters.items():
        index = select(name, parameter, client, turn)
        if is_nothing(index):
            parameter.requires_grad_(False)
            continue
        trained[name] = parameter
        if index is not None:
            partly[name] = index
    return trained, partly


def read(adapted: AdaptedEncoder, like: Adapter) -> Adapter:
    """Copy the model's adapter out, with the rank, scaling and names of ``like``, and its merged parts."""
    merged = like.only(*MERGED_KINDS)
    trained = read_tensors(adapted, (name for name in like.tensors if name not in merged), like)
    return replace(like, tensors={name: trained.get(name, tensor) for name, tensor in like.tensors.items()})


def read_tensors(adapted: AdaptedEncoder, names: Iterable[str], like: Adapter) -> dict[str, Tensor]:
    """Copy some tensors out of the model, which holds an adapter of the rank and scaling of ``like``."""
    parameters: dict[str, nn.Parameter] = {f"head/{path}": parameter for path, parameter in adapted.head.items()}
    parameters |= adapted.method.parameters(adapted.encoder, _rank_in_model(adapted.method, like.rank), like.scaling)
    return {name: parameters[name].detach().cpu().clone() for name in names}
