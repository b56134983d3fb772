"""The forward pass from the cut on, packed by hand or by Hugging Face's own layers; chosen when a method is attached.

*Packed* (see ``layer``) honours frozen linears with plain LoRA and nothing else. *Reference* runs the model's own
modules, hence whatever a method has put in their place, on a padded batch: every token in every layer. Both give the
same scores and gradients where both apply.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional

from splitrank.learning.encoder import Encoder
from splitrank.learning.layer import is_plain, pack, run_layer


def is_packable(encoder: Encoder, trained: Collection[nn.Parameter]) -> bool:
    """Return whether the packed pass honours all that is in the layers from the cut on.

    Args:
        encoder: with a method attached.
        trained: all parameters that may be trained; those of the encoder's layers must be LoRA's factors.
    """
    layers = encoder.model.get_submodule(encoder.family.layers)
    paths = encoder.family.linears.values()
    upper = range(encoder.cut_layer, len(layers))
    try:
        linears = [layers[index].get_submodule(path) for index in upper for path in paths]
    except AttributeError:  # something else stands in the place of a layer or a part of it
        return False
    if not all(map(is_plain, linears)):
        return False
    factors = {id(parameter) for linear in linears for parameter in linear.parameters()}
    inside = {id(parameter) for index in range(len(layers)) for parameter in layers[index].parameters()}
    return all(id(parameter) in factors or id(parameter) not in inside for parameter in trained)


def packed_logits(encoder: Encoder, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return class scores from the trunk's output: the layers from the cut on, then the head.

    Args:
        encoder: whose layers from the cut on are held in its precision; see :meth:`Encoder.cast_and_fuse_qkv`.
        hidden: shape (num_rows, hidden_size), as :meth:`Encoder.trunk` gives it.
        lengths: tokens of each text, int64 on the host, shape (texts,).

    Returns:
        float32 logits, shape (texts, num_labels).

    Raises:
        TypeError: a linear that this pass would not honour.
    """
    packed = pack(lengths, encoder.model.device)
    with encoder.compute():
        bias = encoder.attention_bias(packed)
        for index, layer in enumerate(encoder.layers(range(encoder.cut_layer, encoder.num_layers)), encoder.cut_layer):
            is_last = index == encoder.num_layers - 1
            hidden = run_layer(layer, hidden, packed, bias, encoder.dropout(), first_token_only=is_last)
        return encoder.family.head(encoder.model, hidden).float()


def reference_logits(encoder: Encoder, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return class scores as :func:`packed_logits`, by the model's own layers on a grid of texts by positions."""
    packed = pack(lengths, encoder.model.device)
    missing = packed.mask.numel() - packed.num_tokens
    rows = functional.pad(hidden[: packed.num_tokens], (0, 0, 0, 1)) if missing else hidden[: packed.num_tokens]
    grid = rows.index_select(0, packed.grid_to_row).view(*packed.mask.shape, -1)
    layers = encoder.model.get_submodule(encoder.family.layers)
    with encoder.compute():
        bias = encoder.attention_bias(packed)
        for layer in layers[encoder.cut_layer :]:
            grid = encoder.family.run_layer(layer, grid, bias)
        return encoder.family.head(encoder.model, grid[:, 0]).float()
