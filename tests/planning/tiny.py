"""A RoBERTa of four layers with random weights, for counting what a training step of it computes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
import transformers

from splitrank.learning.encoder import Encoder, load_encoder
from splitrank.planning.flops import EncoderShape

SHAPE = EncoderShape(num_layers=4, hidden_size=8, intermediate_size=20, num_heads=2)
NUM_LABELS, BATCH, TOKENS = 3, 2, 5

_WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"]


def hugging_face_config() -> transformers.RobertaConfig:
    """Return the sizes as Hugging Face wants them, with attention written out."""
    return transformers.RobertaConfig(
        vocab_size=len(_WORDS),
        max_position_embeddings=32,
        num_hidden_layers=SHAPE.num_layers,
        hidden_size=SHAPE.hidden_size,
        intermediate_size=SHAPE.intermediate_size,
        num_attention_heads=SHAPE.num_heads,
        num_labels=NUM_LABELS,
        attn_implementation="eager",
    )


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    with torch.random.fork_rng(devices=[]):
        transformers.RobertaModel(hugging_face_config(), add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(_WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


def tiny_encoder(trained_layers: list[int]) -> Encoder:
    """Load the encoder as a run does."""
    return load_encoder(
        str(_folder()), trained_layers, ["x", "y", "z"],
        precision=torch.float32, device=torch.device("cpu"), max_length=16,
    )  # fmt: skip


def per_batch(coefficients: object) -> float:
    """Return the FLOPs of a batch of texts of equal length from the coefficients of (1, L, L²)."""
    return float(BATCH * (coefficients @ [1, TOKENS, TOKENS**2]))  # type: ignore[operator]
