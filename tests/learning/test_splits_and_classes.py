"""Promise: every loader finds test rows by the same rule, and what a class is is decided once, for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrank.errors import InputError
from splitrank.learning.data import has_test_split, load_path, load_split
from tests.learning.test_data import TRAIN, refused, write, write_rows

DEV = [("a cow", "animal"), ("a plum", "fruit"), ("a crow", "animal")]


# ---- test rows


@pytest.mark.parametrize("name", ["dev.tsv", "valid.csv", "val.jsonl", "validation.parquet", "DEV.CSV"])
def test_a_validation_file_serves_for_testing_by_any_of_its_names(tmp_path, name):
    write_rows(tmp_path / "train.csv", TRAIN)
    (tmp_path / "dev").mkdir()
    write_rows(tmp_path / "dev" / name.lower(), DEV)
    (tmp_path / "dev" / name.lower()).rename(tmp_path / name)
    data = load_path(tmp_path)
    assert (data.test_texts, len(data.train_texts)) == ([text for text, _ in DEV], 4)
    assert (data.origin.train, data.origin.test, data.origin.unused) == ("train.csv", name, ())
    assert has_test_split(tmp_path)
    assert load_split(tmp_path, "test")[0].texts == data.test_texts


def test_a_test_file_comes_before_validation_and_what_is_not_used_is_named(tmp_path):
    for name in ("train.csv", "test.csv", "dev.csv", "train2.csv"):
        write_rows(tmp_path / name, DEV if name == "test.csv" else TRAIN)
    write(tmp_path / "README.md", "x")
    data = load_path(tmp_path)
    assert data.test_texts == [text for text, _ in DEV]
    assert data.origin.unused == ("dev.csv", "train2.csv")


def test_two_validation_files_are_ambiguous(tmp_path):
    for name in ("train.csv", "dev.csv", "valid.csv"):
        write_rows(tmp_path / name, TRAIN)
    refused(tmp_path, "must hold one validation file, got dev.csv and valid.csv")
    write_rows(tmp_path / "test.csv", DEV)
    assert len(load_path(tmp_path).test_texts) == 3


HIDDEN = {
    "no column": "index,text\n0,a\n1,b\n",
    "all -1": "text,label\na,-1\nb,-1\n",
    "all -1.0": "text,label\na,-1.0\nb,-1.0\n",
    "all empty": "text,label\na,\nb,\n",
}


@pytest.mark.parametrize("content", HIDDEN.values(), ids=HIDDEN)
def test_a_test_file_without_labels_is_passed_over(tmp_path, content):
    write_rows(tmp_path / "train.csv", TRAIN)
    write(tmp_path / "test.csv", content)
    refused(tmp_path, "test.csv: rows to test on must have labels", "remove it, or set data.test_share")
    with pytest.raises(InputError, match=r"test.csv: rows to test on must have labels.*remove it$"):
        load_split(tmp_path, "test")
    held_out = load_path(tmp_path, test_share=0.5)
    assert sorted(held_out.train_texts + held_out.test_texts) == sorted(text for text, _ in TRAIN)
    write_rows(tmp_path / "dev.tsv", DEV)
    data = load_path(tmp_path)
    assert data.test_texts == [text for text, _ in DEV]
    assert (data.origin.test, data.origin.notes, data.origin.unused) == ("dev.tsv", ("test.csv has no labels",), ())
    assert load_split(tmp_path, "test")[0].texts == data.test_texts


def test_minus_one_is_a_class_beside_other_labels_or_where_it_is_trained(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,-1\nb,0\nc,1\n")
    write(tmp_path / "test.csv", "text,label\nd,-1\ne,1\n")
    data = load_path(tmp_path)
    assert (data.label_names, data.test_labels.tolist()) == (["-1", "0", "1"], [0, 2])
    write(tmp_path / "test.csv", "text,label\nd,-1\ne,-1.0\n")
    assert load_path(tmp_path).test_labels.tolist() == [0, 0]


def test_a_wrong_label_column_is_named_rather_than_the_test_file(tmp_path):
    write_rows(tmp_path / "train.csv", TRAIN)
    write_rows(tmp_path / "test.csv", DEV)
    refused(tmp_path, "train.csv: data.label must name one of the columns 'text', 'label', got 'stars'", label="stars")


# ---- classes


def reviews(path: Path, num_classes: int, most: int | None = None) -> Path:
    """Amazon's reviews as published: no header, the class from 1, a title and a text."""
    return write(path, "".join(f'"{i % (most or num_classes) + 1}","Title {i}","text {i}"\n' for i in range(20)))


def test_two_classes_without_a_header_are_not_ag_news(tmp_path):
    _, classes, _ = load_split(reviews(tmp_path / "server.csv", 2), "test")
    assert classes == ["1", "2"]
    assert load_split(reviews(tmp_path / "client.csv", 2), "train", classes=classes)[0].labels.tolist() == [0, 1] * 10


def test_a_client_without_the_fifth_class_is_not_shut_out(tmp_path):
    """Its classes 1 to 4 look like AG News's, but the server's decide."""
    _, classes, _ = load_split(reviews(tmp_path / "server.csv", 5), "test")
    rows, same, _ = load_split(reviews(tmp_path / "client.csv", 5, most=4), "train", classes=classes)
    assert same == classes == ["1", "2", "3", "4", "5"]
    assert rows.labels.tolist() == [0, 1, 2, 3] * 5


def test_ag_news_numbers_are_the_servers_names_in_any_file_of_a_client(tmp_path):
    _, classes, _ = load_split(reviews(tmp_path / "server.csv", 4), "test")
    assert classes == ["World", "Sports", "Business", "Sci/Tech"]
    files = ('"3","a","b"\n"1","c","d"\n', "text,label\na,3.0\nb,1\n", "text,label\na,Business\nb,World\n")
    for content in files:
        client = write(tmp_path / "client.csv", content)
        assert load_split(client, "train", classes=classes)[0].labels.tolist() == [2, 0]
    write(tmp_path / "client.csv", "text,label\na,5\n")
    with pytest.raises(InputError, match=r"must be one of the federation's classes .*got '5'"):
        load_split(tmp_path / "client.csv", "train", classes=classes)


def test_one_is_one_point_nought_whatever_else_a_file_holds(tmp_path):
    _, classes, _ = load_split(write(tmp_path / "s.csv", "text,label\na,1.0\nb,2.0\nc,unknown\n"), "test")
    assert classes == ["1.0", "2.0", "unknown"]
    for content in ("text,label\na,1.0\nb,2.0\n", "text,label\na,1\nb,2\n"):
        client = write(tmp_path / "c.csv", content)
        assert load_split(client, "train", classes=classes)[0].labels.tolist() == [0, 1]


def test_one_class_written_in_two_ways_is_one(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,1\nb,1.0\nc,unknown\n")
    write(tmp_path / "test.csv", "text,label\nd,1.\n")
    data = load_path(tmp_path)
    assert (data.label_names, data.train_labels.tolist(), data.test_labels.tolist()) == (
        ["1", "unknown"],
        [0, 0, 1],
        [0],
    )
