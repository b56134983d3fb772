"""The supported model families: the names of their parts, how each runs a layer, and how its head reads a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A model family: the names of its parts, and how it runs them.

    Paths of linears and norms start at a layer, the others at the model. ``run_layer`` takes a layer, states of shape
    (texts, width, hidden_size) and the bias of its attention scores; ``head`` the model and the first tokens' states.
    ``attention_returns`` counts the values that the family's attention returns, the first of them being what counts.
    """

    embeddings: str
    layers: str
    linears: dict[str, str]
    attention_norm: str
    output_norm: str
    head: Callable[[nn.Module, Tensor], Tensor]
    run_layer: Callable[[nn.Module, Tensor, Tensor], Tensor]
    head_modules: tuple[str, ...]
    last_linear: str
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    position_bias: str | None = None
    attention_returns: int = 2


def _bert_layer(layer: Any, grid: Tensor, bias: Tensor) -> Tensor:
    """Run a layer on states (texts, width, hidden_size), with what is added to its attention scores."""
    states: Tensor = layer(grid, bias)
    return states


def _mpnet_layer(layer: Any, grid: Tensor, bias: Tensor) -> Tensor:
    (states,) = layer(grid, attention_mask=bias)  # relative positions are in the bias already
    return cast(Tensor, states)


def _classifier_head(model: Any, first_token: Tensor) -> Tensor:
    logits: Tensor = model.classifier(first_token[:, None])
    return logits


def _pooler_head(model: Any, first_token: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(model.bert.pooler(first_token[:, None])))
    return logits


def _distilbert_head(model: Any, first_token: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(torch.relu(model.pre_classifier(first_token))))
    return logits


_BERT_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


def _roberta() -> Family:
    return Family(
        embeddings="roberta.embeddings",
        layers="roberta.encoder.layer",
        linears=_BERT_LINEARS,
        attention_norm="attention.output.LayerNorm",
        output_norm="output.LayerNorm",
        head=_classifier_head,
        run_layer=_bert_layer,
        head_modules=("classifier",),
        last_linear="classifier.out_proj",
    )


FAMILIES: dict[str, Family] = {
    "roberta": _roberta(),
    "xlm-roberta": _roberta(),
    "camembert": _roberta(),
    "bert": Family(
        embeddings="bert.embeddings",
        layers="bert.encoder.layer",
        linears=_BERT_LINEARS,
        attention_norm="attention.output.LayerNorm",
        output_norm="output.LayerNorm",
        head=_pooler_head,
        run_layer=_bert_layer,
        head_modules=("pooler", "classifier"),
        last_linear="classifier",
    ),
    "mpnet": Family(
        embeddings="mpnet.embeddings",
        layers="mpnet.encoder.layer",
        linears=_BERT_LINEARS
        | {
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "attention_output": "attention.attn.o",
        },
        attention_norm="attention.LayerNorm",
        output_norm="output.LayerNorm",
        head=_classifier_head,
        run_layer=_mpnet_layer,
        head_modules=("classifier",),
        last_linear="classifier.out_proj",
        dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
        position_bias="mpnet.encoder.compute_position_bias",
        attention_returns=1,
    ),
    "distilbert": Family(
        embeddings="distilbert.embeddings",
        layers="distilbert.transformer.layer",
        linears={
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_output": "attention.out_lin",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
        },
        attention_norm="sa_layer_norm",
        output_norm="output_layer_norm",
        head=_distilbert_head,
        run_layer=_bert_layer,
        head_modules=("pre_classifier", "classifier"),
        last_linear="classifier",
        dropouts=("dropout", "attention_dropout", "seq_classif_dropout"),
    ),
}
