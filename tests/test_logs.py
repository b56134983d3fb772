"""Promise: a library that is imported prints nothing; commands show its log, processes with time, level and client."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from splitrank.logs import show_log

LOG = logging.getLogger("splitrank")


@pytest.fixture(autouse=True)
def as_before():
    handlers, level = LOG.handlers[:], LOG.level
    yield
    LOG.handlers[:], LOG.level = handlers, level


def test_sentences_are_plain_for_who_types_a_command(capsys):
    show_log()
    show_log()
    LOG.info("Loading minilm.")
    LOG.warning("torch changed since the run started.")
    LOG.error("data.path must be a folder.")
    LOG.debug("nothing")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Loading minilm.",
        "Warning: torch changed since the run started.",
        "Error: data.path must be a folder.",
    ]


def test_a_process_says_when_and_whose_it_is(capsys):
    show_log(client=2, with_time=True)
    LOG.info("Round 3: training at rank 8.")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO client 2: Round 3: training at rank 8\.", line)


def test_the_library_prints_nothing(tiny_config):
    code = f"from splitrank import load_config, load_data; load_data(load_config({str(tiny_config)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
