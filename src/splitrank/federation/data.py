"""The texts that the settings name: the docstrings, a folder or file, or a data set on the hub."""

from __future__ import annotations

import logging
from pathlib import Path

from splitrank.config import Config
from splitrank.learning.data import TextData, load_hub, load_path, take_rows
from splitrank.learning.docstrings import load_docstrings

_LOG = logging.getLogger("splitrank")

OFFLINE_DATA = "docstrings"
"""``data.name`` of the texts that any installation has."""


def load_data(config: Config) -> TextData:
    """Load the texts that the settings name, cut to ``data.train_rows`` and ``data.test_rows``."""
    table, seed = config.data, config.run.seed
    _LOG.info(f"Reading the texts: {table.path or table.name}.")
    text = list(table.text) if table.text else None
    if table.path is not None:
        data = load_path(Path(table.path), text=text, label=table.label, test_share=table.test_share, seed=seed)
    elif table.name == OFFLINE_DATA:
        data = load_docstrings()
    else:
        assert table.name is not None
        data = load_hub(table.name, text=text, label=table.label, test_share=table.test_share, seed=seed)
    return take_rows(data, table.train_rows, table.test_rows, seed)
