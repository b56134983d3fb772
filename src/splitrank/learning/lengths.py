"""How long texts are in tokens, and what cutting them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from splitrank.learning.data import TextData, TokenLengths
from splitrank.learning.encoder import token_ids_of

TokenIds = Sequence[NDArray[np.int32]]


def with_lengths(
    data: TextData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_ids: TokenIds | None,
    test_ids: TokenIds,
) -> TextData:
    """Return a data set with the lengths of its texts.

    Args:
        data: the texts.
        tokenizer: that of the model.
        max_length: tokens to which texts are cut.
        train_ids, test_ids: token ids of the texts, cut; None for training texts that are elsewhere.
    """
    seen = {ids.tobytes() for ids in train_ids or ()}
    lengths = TokenLengths(
        max_length=max_length,
        train_longer=None if train_ids is None else _num_longer(tokenizer, data.train_texts, train_ids, max_length),
        test_longer=_num_longer(tokenizer, data.test_texts, test_ids, max_length),
        test_seen=sum(ids.tobytes() in seen for ids in test_ids),
    )
    return replace(data, lengths=lengths)


def _num_longer(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], cut: TokenIds, max_length: int) -> int:
    """Return how many texts were cut: of those that fill all tokens, those that would fill one more."""
    full = [text for text, ids in zip(texts, cut, strict=True) if len(ids) >= max_length]
    return sum(len(ids) > max_length for ids in token_ids_of(tokenizer, full, max_length + 1))
