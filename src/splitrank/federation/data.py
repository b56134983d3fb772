"""The texts that the settings name: the docstrings, a folder or file, or a data set on the hub."""

from __future__ import annotations

import logging
from pathlib import Path

from splitrank.config import ByColumn, Config
from splitrank.errors import check_types
from splitrank.federation.manifest import check_unchanged, read_manifest
from splitrank.federation.partitions import partition_of
from splitrank.learning.data import TextData, load_hub, load_path, take_rows
from splitrank.learning.docstrings import load_docstrings
from splitrank.learning.summary import DataSummary, summarise
from splitrank.learning.table import TableFormat

_LOG = logging.getLogger("splitrank")

OFFLINE_DATA = "docstrings"
"""``data.name`` of the texts that any installation has."""


def load_data(config: Config, *, resumes: Path | None = None) -> TextData:
    """Load the texts that the settings name, cut to ``data.train_rows`` and ``data.test_rows``, and say what they are.

    Args:
        config: the settings.
        resumes: the folder of a run that goes on with these texts; None where a run starts.

    Raises:
        InputError: texts that break a rule, or that are not those of the run.
    """
    check_types(config=(config, Config, 'load_config("offline") returns one'))
    _LOG.info(f"Reading the texts: {config.data.path or config.data.name}.")
    return announced(read_data(config), resumes=resumes)


def read_data(config: Config) -> TextData:
    """Load the texts that the settings name, and say nothing."""
    table, seed = config.data, config.run.seed
    text = list(table.text) if table.text else None
    holder = config.federation.partition.column if isinstance(config.federation.partition, ByColumn) else None
    if table.path is not None:
        data = load_path(
            table.path, text=text, label=table.label, holder=holder, form=table_format(config),
            test_share=table.test_share, seed=seed,
        )  # fmt: skip
    elif table.name == OFFLINE_DATA:
        data = load_docstrings()
    else:
        assert table.name is not None
        data = load_hub(
            table.name, config=table.config, text=text, label=table.label, holder=holder,
            test_share=table.test_share, seed=seed,
        )  # fmt: skip
    return take_rows(data, table.train_rows, table.test_rows, seed)


def table_format(config: Config) -> TableFormat:
    """Return how the files of the settings' texts are written, as far as the settings say."""
    return TableFormat(config.data.encoding, config.data.separator, config.data.columns)


def announced(data: TextData, *, resumes: Path | None = None) -> TextData:
    """Say what some texts are, and return them, if they are those of the run that they are for."""
    if resumes is not None:
        check_unchanged(resumes, read_manifest(resumes), "data", data.fingerprint)
    for line in summarise(data).reading_lines():
        _LOG.info(line)
    return data


def data_summary(config: Config) -> DataSummary:
    """Return what a run would make of its data, without a model; without lengths where there is no tokenizer."""
    data = read_data(config)
    dealt = partition_of(config, data)
    from transformers import AutoTokenizer

    from splitrank.learning.encoder import model_location, token_ids_of
    from splitrank.learning.lengths import with_lengths

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_location(config.model.name))
    except Exception as error:  # transformers, the hub's client and the network stack share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _LOG.info(f"How long the texts are is not known without the tokenizer of {config.model.name}: {reason}")
        return summarise(data, dealt)
    length = config.model.max_length
    train_ids, test_ids = (token_ids_of(tokenizer, texts, length) for texts in (data.train_texts, data.test_texts))
    return summarise(with_lengths(data, tokenizer, length, train_ids, test_ids), dealt)
