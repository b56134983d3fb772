"""Promises of the loaders: every format gives the same data, and every flaw is named with its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitrank.errors import InputError
from splitrank.learning.data import TextData, load_path, take_rows

TRAIN = [
    ("a red apple", "fruit"),
    ("one dog, two cats", "animal"),
    ("a green pear", "fruit"),
    ('it said "NA"', "animal"),
]
TEST = [("NA", "fruit"), ("three\nmice", "animal")]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(rows, delimiter=","):
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in [("text", "label"), *rows]]
    return "\n".join(delimiter.join(row) for row in quoted) + "\n"


def write_rows(path: Path, rows) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [row[0] for row in rows], "label": [row[1] for row in rows]}), path)
    elif path.suffix == ".jsonl":
        write(path, "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    else:
        write(path, table(rows, "," if path.suffix == ".csv" else "\t"))


def refused(path: Path, *parts: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_path(path, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message


def folder_with(tmp_path: Path, train: str | bytes, test: str | bytes | None = None, ending: str = ".csv") -> Path:
    write(tmp_path / f"train{ending}", train)
    if test is not None:
        write(tmp_path / f"test{ending}", test)
    return tmp_path


def same(one: TextData, other: TextData) -> bool:
    return one.fingerprint == other.fingerprint and one.train_texts == other.train_texts


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path, ending):
    write_rows(tmp_path / f"train{ending}", TRAIN)
    write_rows(tmp_path / f"test{ending}", TEST)
    data = load_path(tmp_path)
    assert data.train_texts == [row[0] for row in TRAIN]
    assert data.test_texts == ["NA", "three\nmice"]
    assert data.label_names == ["animal", "fruit"]
    assert data.train_labels.tolist() == [1, 0, 1, 0]
    assert data.train_labels.dtype == np.int64
    assert data.test_labels.tolist() == [1, 0]
    assert len(data.fingerprint) == 64
    assert f"train{ending}" in data.source


def test_formats_may_be_mixed_and_share_a_fingerprint(tmp_path):
    fingerprints = set()
    for number, endings in enumerate([(".csv", ".parquet"), (".jsonl", ".tsv")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_rows(folder / f"train{endings[0]}", TRAIN)
        write_rows(folder / f"test{endings[1]}", TEST)
        fingerprints.add(load_path(folder).fingerprint)
    assert len(fingerprints) == 1


def test_the_fingerprint_sees_order_labels_and_names(tmp_path):
    variants = [TRAIN, TRAIN[::-1], [(text, {"fruit": "food"}.get(label, label)) for text, label in TRAIN]]
    variants.append([(text, "animal" if text == "a red apple" else label) for text, label in TRAIN])
    fingerprints = set()
    for number, rows in enumerate(variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_rows(folder / "train.csv", rows)
        write_rows(folder / "test.csv", [("a dog", "animal")])
        fingerprints.add(load_path(folder).fingerprint)
    assert len(fingerprints) == 4


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path):
    plain = table(TRAIN)
    write(tmp_path / "plain.csv", plain)
    write(tmp_path / "windows.csv", b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode())
    assert same(load_path(tmp_path / "plain.csv"), load_path(tmp_path / "windows.csv"))


def test_blank_lines_are_skipped(tmp_path):
    folder_with(tmp_path, "text,label\n\na,x\n\nb,y\n\n", "text,label\nc,x\n\n")
    assert load_path(tmp_path).train_texts == ["a", "b"]


# --- headers ---------------------------------------------------------------------------------------------------------

AG_TRAIN = '"3","Oil up","Prices rose."\n"1","Vote","They voted."\n"2","Goal","They won."\n"4","Chip","A new chip."\n'


def test_the_headerless_form_of_ag_news(tmp_path):
    folder_with(tmp_path, AG_TRAIN, '"2","Match","Drawn."\n')
    data = load_path(tmp_path)
    assert data.train_texts[0] == "Oil up Prices rose."
    assert data.label_names == ["World", "Sports", "Business", "Sci/Tech"]
    assert data.train_labels.tolist() == [2, 0, 1, 3]
    assert data.test_labels.tolist() == [1]
    assert load_path(tmp_path, text=["description"], label="label").train_texts[0] == "Prices rose."
    assert same(data, load_path(tmp_path, text=["title", "description"]))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('"1","a","b"\n"2","c","d"\n', ["1", "2"]),  # three columns, other classes
        ("1,a\n2,b\n3,c\n4,d\n", ["1", "2", "3", "4"]),  # AG News's classes, but two columns
        ("10,a,b,c\n9,d,e,f\n", ["9", "10"]),
    ],
)
def test_other_headerless_files_keep_their_numbers(tmp_path, content, names):
    data = load_path(folder_with(tmp_path, content, content))
    assert data.label_names == names
    assert data.train_texts == data.test_texts
    assert len(data.train_texts) == len(names)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("label,title,description\n3,a,b\n1,c,d\n", {"text": ["title", "description"]}),
        ("text,label\n5,1\n6,2\n", {}),  # texts that are numbers
        ("2024,text,label\n1,a b,1\n2,c d,2\n", {}),  # a header that starts with a number
        ("1,kind\n7,a\n8,b\n", {"text": ["1"], "label": "kind"}),
    ],
)
def test_a_normal_header_is_not_misread(tmp_path, content, options):
    data = load_path(folder_with(tmp_path, content, content), **options)
    assert len(data.train_texts) == 2
    assert len(data.label_names) == 2


def test_a_header_of_numbers_or_rows_without_a_class_are_not_the_headerless_form(tmp_path):
    refused(folder_with(tmp_path, "0,1,2\n3,a,b\n1,c,d\n"), "one of the columns '0', '1', '2'")
    refused(folder_with(tmp_path, "1,apple,pear\nx,a,b\ny,c,d\n"), "one of the columns '1', 'apple', 'pear'")


# --- texts and labels ------------------------------------------------------------------------------------------------


def test_text_columns_are_stripped_and_joined_by_one_space(tmp_path):
    content = "title,body,label\n  A title ,  the body  ,x\n,only a body,y\nonly a title,,x\n"
    data = load_path(folder_with(tmp_path, content, content), text=["title", "body"])
    assert data.train_texts == ["A title the body", "only a body", "only a title"]


def test_numbers_are_ordered_by_value_and_strings_by_alphabet(tmp_path):
    folder_with(tmp_path, "text,label\na,10\nb,9\nc,2\n", "text,label\nd,9\n")
    assert load_path(tmp_path).label_names == ["2", "9", "10"]
    folder_with(tmp_path, "text,label\na,x10\nb,x9\nc,x2\n", "text,label\nd,x9\n")
    assert load_path(tmp_path).label_names == ["x10", "x2", "x9"]


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], ["1", "2"], ["1.0", "2.0"]])
def test_whole_numbers_are_the_same_label_however_stored(tmp_path, values):
    pq.write_table(pa.table({"text": ["a", "b"], "label": values}), tmp_path / "train.parquet")
    write(tmp_path / "test.csv", "text,label\nc,2\n")
    data = load_path(tmp_path)
    assert data.label_names == ["1", "2"]
    assert data.test_labels.tolist() == [1]


def test_fractions_and_truth_values_stay_what_they_are(tmp_path):
    write_rows(tmp_path / "half.jsonl", [("a", 0.5), ("b", 1.0), ("c", 0.5), ("d", 1.0)])
    assert load_path(tmp_path / "half.jsonl").label_names == ["0.5", "1.0"]
    write_rows(tmp_path / "truth.jsonl", [("a", True), ("b", False), ("c", True), ("d", False)])
    assert load_path(tmp_path / "truth.jsonl").label_names == ["False", "True"]


# --- holding out and taking rows -------------------------------------------------------------------------------------


def hundred(tmp_path: Path) -> Path:
    rows = [(f"text {number}", ["x", "x", "x", "y"][number % 4]) for number in range(100)]
    write_rows(tmp_path / "all.csv", rows)
    return tmp_path / "all.csv"


def test_one_file_is_split_by_seed_with_equal_shares(tmp_path):
    path = hundred(tmp_path)
    data = load_path(path, test_share=0.2, seed=3)
    assert np.bincount(data.test_labels).tolist() == [15, 5]
    assert np.bincount(data.train_labels).tolist() == [60, 20]
    assert sorted(data.train_texts + data.test_texts) == sorted(f"text {number}" for number in range(100))
    order = [int(text.split()[1]) for text in data.train_texts]
    assert order == sorted(order)
    assert same(data, load_path(path, test_share=0.2, seed=3))
    assert not same(data, load_path(path, test_share=0.2, seed=4))
    assert "20 of 100 rows held out for testing by seed 3" in data.source


def test_a_folder_without_a_test_file_uses_validation_else_holds_out(tmp_path):
    write_rows(tmp_path / "train.csv", TRAIN)
    assert len(load_path(tmp_path, test_share=0.5).test_texts) == 2
    write_rows(tmp_path / "validation.csv", [("a cow", "animal")])
    assert load_path(tmp_path).test_texts == ["a cow"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_holding_out_leaves_every_class_a_training_row(tmp_path, share):
    write_rows(tmp_path / "all.csv", [("a", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("e", "z"), ("f", "z")])
    data = load_path(tmp_path / "all.csv", test_share=share)
    assert set(data.train_labels.tolist()) == {0, 1, 2}
    assert 1 <= len(data.test_texts) <= 3


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_a_share_outside_its_range_is_refused(tmp_path, share):
    refused(hundred(tmp_path), "data.test_share must lie between 0 and 1", f"got {share}", test_share=share)


def test_holding_out_needs_a_class_with_two_rows(tmp_path):
    refused(folder_with(tmp_path, "text,label\na,x\nb,y\n"), "at least 2 rows", "give a test file")


def test_taking_rows_keeps_shares_and_order(tmp_path):
    data = load_path(hundred(tmp_path), test_share=0.2)
    few = take_rows(data, 40, 8, seed=1)
    assert np.bincount(few.train_labels).tolist() == [30, 10]
    assert np.bincount(few.test_labels).tolist() == [6, 2]
    positions = [data.train_texts.index(text) for text in few.train_texts]
    assert positions == sorted(set(positions))
    assert [data.train_labels[position] for position in positions] == few.train_labels.tolist()
    assert few.fingerprint == take_rows(data, 40, 8, seed=1).fingerprint
    assert few.fingerprint not in (take_rows(data, 40, 8, seed=2).fingerprint, data.fingerprint)
    assert "40 of 80 training rows and 8 of 20 test rows by seed 1" in few.source
    assert take_rows(data, None, None, seed=1) is data
    assert take_rows(data, None, 5, seed=1).train_texts == data.train_texts
    assert take_rows(data, 80, 20, seed=1).fingerprint == data.fingerprint


def test_taking_few_rows_loses_no_class(tmp_path):
    rows = [(f"text {number}", "rare" if number == 0 else "common") for number in range(100)]
    write_rows(tmp_path / "train.csv", rows)
    write_rows(tmp_path / "test.csv", rows[:10])
    for seed in range(5):
        few = take_rows(load_path(tmp_path), 2, 1, seed=seed)
        assert np.bincount(few.train_labels).tolist() == [1, 1]
        assert len(few.test_texts) == 1


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (81, None, r"data\.train_rows must be at most the number of training rows there are \(80\), got 81"),
        (1, None, r"data\.train_rows must be at least 2 \(the number of classes\), got 1"),
        (None, 21, r"data\.test_rows must be at most .*\(20\), got 21"),
        (None, 0, r"data\.test_rows must be at least 1 \(one row\), got 0"),
    ],
)
def test_taking_a_number_out_of_range_is_refused(tmp_path, train, test, message):
    with pytest.raises(InputError, match=message):
        take_rows(load_path(hundred(tmp_path), test_share=0.2), train, test, seed=0)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_missing_path_or_file_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(Path("nowhere"), "data.path must be an existing file or folder", str(tmp_path / "nowhere"))
    refused(tmp_path, "a file called train", ".csv, .tsv, .jsonl, .parquet", "an empty folder")
    write(tmp_path / "train.txt", "x")
    refused(tmp_path, "a file called train", "got train.txt", str(tmp_path))
    refused(tmp_path / "train.txt", "must end in one of .csv, .tsv, .jsonl, .parquet", "got '.txt'")


def test_two_training_files_are_ambiguous(tmp_path):
    write_rows(tmp_path / "train.csv", TRAIN)
    write_rows(tmp_path / "train.jsonl", TRAIN)
    refused(tmp_path, "must hold one train file, got train.csv and train.jsonl")
    assert load_path(tmp_path / "train.csv").label_names == ["animal", "fruit"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_an_empty_file_is_refused(tmp_path, ending):
    refused(folder_with(tmp_path, "", ending=ending), f"train{ending}", "at least one row of data, got an empty file")


def test_a_file_with_a_header_alone_is_refused(tmp_path):
    refused(folder_with(tmp_path, "text,label\n"), "train.csv", "at least one row of data, got none")


def test_a_damaged_parquet_file_is_refused(tmp_path):
    refused(folder_with(tmp_path, b"PAR1 and so on", ending=".parquet"), "train.parquet: the file must be Parquet")


def test_a_folder_called_like_a_file_is_refused(tmp_path):
    (tmp_path / "train.csv").mkdir()
    refused(tmp_path, "train.csv: the file cannot be read")


def test_bytes_that_are_not_utf8_are_placed(tmp_path):
    refused(
        folder_with(tmp_path, "text,label\nplain,x\ncaf\xe9,y\n".encode("latin-1")),
        "train.csv, line 3", "must be UTF-8, got byte 0xe9 at offset 22", "data.encoding",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("text,label\na,x\nb,y,z\n", ["line 3", "2 fields like the first, got 3", "double quotes"]),
        ("text,label\na\nb,y\n", ["line 2", "2 fields like the first, got 1"]),
        ('text,label\na,x\n"b,y\nc,x\n', ["line 3", "malformed", "close every double quote"]),
        ('text,label\na,x\n"b"c,y\n', ["line 3", "malformed"]),
        ('text,label\n"two\nlines",x\nb\n', ["line 4", "got 1"]),
        ("text,text,label\na,b,x\n", ["line 1", "column names must differ, got 'text'"]),
    ],
)
def test_a_malformed_csv_line_is_placed(tmp_path, content, parts):
    refused(folder_with(tmp_path, content), "train.csv", *parts)


@pytest.mark.parametrize(
    ("line", "part"), [('{"text": "a"', "one JSON object"), ('["a"]', "got list"), ("\x00", "one JSON object")]
)
def test_a_malformed_json_line_is_placed(tmp_path, line, part):
    good = '{"text": "a", "label": "x"}\n'
    refused(folder_with(tmp_path, good + "\n" + line + "\n" + good, ending=".jsonl"), "train.jsonl, line 3", part)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_missing_column_lists_those_there_are(tmp_path, ending):
    rows = {"headline": ["a", "b"], "class": ["x", "y"]}
    if ending == ".csv":
        write(tmp_path / "train.csv", "headline,class\na,x\nb,y\n")
    elif ending == ".jsonl":
        write(tmp_path / "train.jsonl", '{"headline": "a", "class": "x"}\n{"headline": "b", "class": "y"}')
    else:
        pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    hint = 'data.text=["..."] data.label="..."'
    refused(tmp_path, "data.text must name one of the columns 'headline', 'class', got 'text'", hint)
    refused(tmp_path, "data.label must name one of", "got 'label'", hint, text=["headline"])
    refused(tmp_path, "got 'body'", text=["headline", "body"], label="class")
    refused(tmp_path, "data.text must name at least one column", text=[], label="class")


def test_a_wrong_name_for_a_headerless_column_says_so(tmp_path):
    refused(
        folder_with(tmp_path, AG_TRAIN), "'label', 'title', 'description' (ours: the file has no header)", text=["x"]
    )


def test_a_test_label_unknown_in_training_is_named(tmp_path):
    folder_with(tmp_path, "text,label\na,x\nb,y\n", "text,label\nc,x\nd,z\n")
    refused(tmp_path, "test.csv, line 3", "got 'z'", "the training labels are 'x', 'y'")


def test_one_class_is_too_few(tmp_path):
    refused(folder_with(tmp_path, "text,label\na,x\nb,x\n"), "at least 2 classes, got only 'x'")


def test_empty_texts_are_counted_and_placed(tmp_path):
    content = "text,label\n,x\nb,y\n  ,x\n,x\n,x\n,x\n"
    refused(folder_with(tmp_path, content), "lines 2, 4 and 5 (and 2 more): a text must not be empty", "drop the row")
    refused(folder_with(tmp_path, "text,label\na,x\nb,y\n", content), "test.csv, lines 2, 4 and 5")


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_a_missing_label_is_placed(tmp_path, value):
    write_rows(tmp_path / "train.jsonl", [("a", "x"), ("b", value), ("c", "y")])
    refused(tmp_path, "train.jsonl, line 2: a label must not be empty or missing")


def test_missing_values_of_parquet_are_placed(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "c"], "label": [1, 2, None]}), tmp_path / "train.parquet")
    refused(tmp_path, "train.parquet, row 2: a text must not be empty or missing")
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [1.0, 2.0, None]}), tmp_path / "train.parquet")
    refused(tmp_path, "train.parquet, row 3: a label must not be empty or missing")


def test_a_missing_json_key_is_a_missing_value(tmp_path):
    refused(
        folder_with(tmp_path, '{"text": "a", "label": 1}\n{"label": 2}\n', ending=".jsonl"),
        "line 2: a text must not be empty or missing",
    )


def test_values_of_a_wrong_kind_are_refused(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": [1, 2]}), tmp_path / "train.parquet")
    refused(tmp_path, "rows 1 and 2", "column 'text' must hold text, got int")
    pq.write_table(pa.table({"text": ["a", "b"], "label": [[1], [2]]}), tmp_path / "train.parquet")
    refused(tmp_path, "a label must be a string or a number, got list")


def test_an_overlong_text_is_placed(tmp_path):
    folder = folder_with(tmp_path, f"text,label\na,x\n{'b' * 1_000_001},y\n{'c' * 1_000_000},y\n")
    refused(folder, "line 3: a text must have at most 1,000,000 characters, got 1,000,001", "split it or leave it out")


def test_half_a_surrogate_pair_is_refused(tmp_path):
    content = '{"text": "a", "label": 1}\n{"text": "\\ud83d", "label": 2}\n'
    refused(folder_with(tmp_path, content, ending=".jsonl"), "line 2: a text must be valid Unicode")


# --- promises of the module ------------------------------------------------------------------------------------------


def test_importing_the_loaders_does_not_import_heavy_libraries():
    program = (
        "import sys; import splitrank.learning.data, splitrank.learning.docstrings, splitrank.learning.minilm; "
        "print({'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.agnews
def test_ag_news_loads_whole(agnews):
    data = load_path(agnews)
    assert (len(data.train_texts), len(data.test_texts)) == (76_532, 7_600)
    assert data.label_names == ["World", "Sports", "Business", "Sci/Tech"]
    assert np.bincount(data.test_labels).tolist() == [1900] * 4
    assert data.train_texts[0].startswith("Wall St. Bears Claw Back Into the Black (Reuters) Reuters - Short-sellers")
