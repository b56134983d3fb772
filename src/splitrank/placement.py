"""Where adapters sit: which layers of the encoder and which linears of a layer, by name.

Both wings need the answer (one counts the parameters, the other attaches them), so it stands on the ground floor.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitrank.errors import ConfigError

LINEARS = ("query", "key", "value", "attention_output", "intermediate", "output")
"""The six linears of a transformer layer, in the order in which a layer uses them."""

LINEAR_SETS: dict[str, tuple[str, ...]] = {
    "query-value": ("query", "value"),
    "attention": ("query", "key", "value", "attention_output"),
    "all-linear": LINEARS,
}

# What the supported families call these linears, as PEFT's `target_modules` would name them. A name that ends several
# linears of a layer (BERT's "dense") means all of them, as it does in PEFT.
_MODULE_NAMES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in LINEARS},
    **dict.fromkeys(("attention.self.query", "self.query", "q", "attn.q", "attention.attn.q", "q_lin"), ("query",)),
    **dict.fromkeys(("attention.self.key", "self.key", "k", "attn.k", "attention.attn.k", "k_lin"), ("key",)),
    **dict.fromkeys(("attention.self.value", "self.value", "v", "attn.v", "attention.attn.v", "v_lin"), ("value",)),
    **dict.fromkeys(("attention.output.dense", "o", "attn.o", "attention.attn.o", "out_lin"), ("attention_output",)),
    **dict.fromkeys(("intermediate.dense", "lin1", "ffn.lin1"), ("intermediate",)),
    **dict.fromkeys(("lin2", "ffn.lin2"), ("output",)),
    "output.dense": ("attention_output", "output"),
    "dense": ("attention_output", "intermediate", "output"),
}


def target_linears(target_modules: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the linears that ``adapter.target_modules`` selects, in the order of ``LINEARS``.

    Args:
        target_modules: ``"query-value"``, ``"attention"``, ``"all-linear"`` or a list of module names, either those
            of ``LINEARS`` or a model family's own (``"q_lin"``, ``"attention.self.query"``).

    Raises:
        ValueError: a name that matches no linear of a layer; the message lists what would.
    """
    if isinstance(target_modules, str):
        if target_modules not in LINEAR_SETS:
            raise ValueError(f'one of {", ".join(LINEAR_SETS)} or a list of module names such as ["query", "value"]')
        return LINEAR_SETS[target_modules]
    chosen: set[str] = set()
    for name in target_modules:
        if name not in _MODULE_NAMES:
            raise ValueError(
                f"a list of names that match a linear of a layer ({', '.join(LINEARS)}); {name!r} does not"
            )
        chosen.update(_MODULE_NAMES[name])
    if not chosen:
        raise ValueError(f"a list with at least one of {', '.join(LINEARS)}")
    return tuple(name for name in LINEARS if name in chosen)


def parse_trained_layers(trained_layers: str | Sequence[int]) -> None:
    """Check the form of ``model.trained_layers`` where the number of layers is not known yet.

    Raises:
        ValueError: the rule that it breaks.
    """
    if isinstance(trained_layers, str):
        place, _, count = trained_layers.partition(":")
        if trained_layers == "all" or (place in ("first", "middle", "last") and count.isdigit() and int(count) > 0):
            return
        raise ValueError('"last:N", "middle:N", "first:N" with N at least 1, "all", or a list of layer indices')
    if not trained_layers:
        raise ValueError("a list with at least one layer index")
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in trained_layers):
        raise ValueError("a list of layer indices (whole numbers)")
    if len(set(trained_layers)) != len(trained_layers):
        raise ValueError("a list of layer indices without duplicates")


def layer_indices(trained_layers: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Indices of the trained layers, ascending; the first of them is the ``cut_layer``.

    Args:
        trained_layers: ``"last:3"``, ``"first:3"``, ``"middle:3"``, ``"all"`` or a list of indices counted from 0.
        num_layers: layers of the encoder.

    Raises:
        ConfigError: layers that the encoder does not have.
    """
    if not isinstance(trained_layers, str):
        if not all(0 <= layer < num_layers for layer in trained_layers):
            raise _no_such_layers(f"indices from 0 to {num_layers - 1}", num_layers, list(trained_layers))
        return tuple(sorted(trained_layers))
    if trained_layers == "all":
        return tuple(range(num_layers))
    place, _, digits = trained_layers.partition(":")
    count = int(digits)
    if count > num_layers:
        raise _no_such_layers(f"at most {num_layers} layers", num_layers, trained_layers)
    start = {"first": 0, "middle": (num_layers - count) // 2, "last": num_layers - count}[place]
    return tuple(range(start, start + count))


def _no_such_layers(rule: str, num_layers: int, got: object) -> ConfigError:
    return ConfigError([f"model.trained_layers must be {rule}, got {got!r}; the model has {num_layers} layers"])
