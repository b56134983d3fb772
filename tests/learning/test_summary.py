"""Promise: a person is told what was made of the data, and warned of what is likely not meant."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from splitrank.errors import InputError
from splitrank.learning.data import load_path
from splitrank.learning.encoder import token_ids_of
from splitrank.learning.lengths import with_lengths
from splitrank.learning.summary import summarise
from tests.learning.test_data import write, write_rows


def summary_of(tmp_path, rows, test=None, **options):
    write_rows(tmp_path / "train.csv", rows)
    if test is not None:
        write_rows(tmp_path / "test.csv", test)
    return summarise(load_path(tmp_path, **options))


def test_one_line_tells_rows_origins_and_classes(tmp_path):
    summary = summary_of(tmp_path, [(f"text {i}", "xxy"[i % 3]) for i in range(1500)], seed=4)
    (line,) = summary.reading_lines()
    assert line == (
        "Texts: 1,200 training rows (train.csv), 300 test rows (held out of train.csv by seed 4); "
        "2 classes: x 800, y 400."
    )
    assert summary.worth_line() == "Always naming the largest class, x, is right for 66.7 % of the test rows."
    told = json.loads(json.dumps(summary.to_json()))
    assert (told["train_counts"], told["test_counts"], told["largest_class"]) == ([800, 400], [200, 100], "x")
    assert told["largest_class_share"] == pytest.approx(2 / 3)


def test_of_many_classes_the_largest_ten_are_listed(tmp_path):
    rows = [(f"text {label} {i}", f"c{label:02}") for label in range(12) for i in range(30 - label)]
    (line,) = summary_of(tmp_path, rows, rows[:1]).reading_lines()
    assert "12 classes: c00 30, c01 29, " in line
    assert line.endswith("c09 21 and 2 more of 19 to 20.")


def test_scores_look_like_numbers_to_predict(tmp_path):
    scores = [(f"text {i}", f"{i / 7:.3f}") for i in range(60)]
    with pytest.raises(
        InputError, match=r"at least 2 rows.*; the labels look like numbers to predict, not like classes"
    ):
        summary_of(tmp_path, scores)
    warnings = summary_of(tmp_path, scores, scores[:5]).warnings
    assert warnings == [
        "the labels look like numbers to predict, not like classes (60 different ones in 60 rows, such as '0.000'); "
        "turn them into a few classes"
    ]
    rounded = [(f"text {i}", f"{i % 16 / 5:.1f}") for i in range(400)]  # few rows of each would not show it
    assert "look like numbers" in summary_of(tmp_path, rounded, rounded[:5]).warnings[0]
    with pytest.raises(InputError, match=r"a test label must also occur.*look like numbers to predict"):
        summary_of(tmp_path, scores, [("text", "0.001")])


@pytest.mark.parametrize(
    ("labels", "has_doubt"),
    [
        ([f"id{i}" for i in range(30)], True),
        ([f"{i}" for i in range(30)], True),
        ([f"{i % 10 / 2}" for i in range(30)], False),  # half stars
        ([f"c{i % 12}" for i in range(30)], False),
    ],
)
def test_nearly_as_many_classes_as_rows_are_doubted(tmp_path, labels, has_doubt):
    rows = [(f"text {i}", label) for i, label in enumerate(labels)]
    assert bool(summary_of(tmp_path, rows, rows[:3]).warnings) == has_doubt


def test_a_missing_label_or_a_header_among_the_classes_is_warned_of(tmp_path):
    rows = [("a", "nan"), ("b", "x"), ("c", "y"), ("text", "Label")]
    assert summary_of(tmp_path, rows, rows[1:2]).warnings == [
        "'Label' is a class with 1 rows, but looks like a header in the midst of the rows",
        "'nan' is a class with 1 rows, but looks like a missing label",
    ]


def test_files_that_are_not_used_are_warned_of(tmp_path):
    write(tmp_path / "extra.csv", "anything")
    rows = [("a", "x"), ("b", "y")]
    assert summary_of(tmp_path, rows, rows).warnings == ["not used: extra.csv, beside train.csv"]


def test_what_cutting_does_is_counted(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    words = ["market", "team", "game", "stock", "court", "chip", "storm", "price"]
    fits, too_long = " ".join(words[:6]), " ".join(words[:7])  # with two special tokens 8 and 9
    train = [(fits, "x"), (too_long, "y"), ("rain", "y")]
    test = [(f"{too_long} rain", "x"), ("law", "y")]  # cut it is the first training text
    write_rows(tmp_path / "train.csv", train)
    write_rows(tmp_path / "test.csv", test)
    data = load_path(tmp_path)
    ids = [token_ids_of(tokenizer, texts, 8) for texts in (data.train_texts, data.test_texts)]
    measured = with_lengths(data, tokenizer, 8, *ids)
    assert (measured.lengths.train_longer, measured.lengths.test_longer, measured.lengths.test_seen) == (1, 1, 1)
    assert list(summarise(measured).length_lines()) == [
        "33.3 % of the training texts and 50.0 % of the test texts have more tokens than model.max_length = 8, and "
        "are cut there.",
        "Warning: 1 of 2 test texts are equal to a training text once cut to 8 tokens.",
    ]
    whole = [token_ids_of(tokenizer, texts, 16) for texts in (data.train_texts, data.test_texts)]
    (line,) = summarise(with_lengths(data, tokenizer, 16, *whole)).length_lines()
    assert line == "No text has more tokens than model.max_length = 16."
    elsewhere = with_lengths(data, tokenizer, 8, None, ids[1])
    assert next(summarise(elsewhere).length_lines()).startswith("50.0 % of the test texts have")
    assert all(np.array_equal(a, b) for a, b in zip(ids[0], token_ids_of(tokenizer, data.train_texts, 8), strict=True))
