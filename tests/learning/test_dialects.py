"""Promise: tables as people have them are read as they are meant, or refused in one sentence; none is misread."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitrank.errors import InputError
from splitrank.learning.data import load_path
from splitrank.learning.table import TableFormat
from splitrank.learning.table_files import read_table
from tests.learning.test_data import AG_TRAIN, TRAIN, folder_with, refused, same, table, write, write_rows


def rows_of(path: Path, content: str | bytes, *, text: str = "text", label: str = "label", form=None) -> list[tuple]:
    """Rows of a file in its order."""
    found = read_table(write(path, content), [text, label], form)
    return list(zip(found.columns[text], found.columns[label], strict=True))


# ---- quotes

LITERAL = [
    ('He called it "a start"', "x"),
    ('"We will see," she said', "y"),
    ('It grew by 5"', "x"),
    ('"shares fell', "y"),
    ('it was the noise that woke us . "', "x"),
]


def tabs(rows) -> str:
    return "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)


def test_quotes_of_a_tsv_without_quoting_are_characters(tmp_path):
    assert rows_of(tmp_path / "a.tsv", tabs(LITERAL)) == LITERAL
    (note,) = read_table(tmp_path / "a.tsv", ["text", "label"]).notes
    assert note == "a.tsv has no quoting: its quotes are characters"


def test_a_quotation_left_open_swallows_no_row(tmp_path):
    """By RFC 4180 lines 3 to 5 are one row, whose label is that of the last."""
    rows = [("fine", "x"), ('"we had the corner room, said my aunt .', "x"), ("cold soup", "y"), ('woke us . "', "y")]
    assert rows_of(tmp_path / "a.tsv", tabs(rows * 16)) == rows * 16


def test_a_few_sentences_wholly_in_quotes_do_not_make_a_tsv_quoted(tmp_path):
    """As in GLUE's MRPC; one in five lines is too many to tell."""
    rows = [*LITERAL * 2, ('"We are ready ."', "x")]
    assert rows_of(tmp_path / "a.tsv", tabs(rows)) == rows
    rows.append(('"So are we ."', "x"))
    with pytest.raises(InputError, match=r"a.tsv, line 3: quotes must wrap whole fields on every line or on none"):
        rows_of(tmp_path / "a.tsv", tabs(rows))


@pytest.mark.parametrize("wrapped", ['"as ""it"" is"', '"as it is"'])
def test_quotes_that_wrap_on_some_lines_only_are_refused(tmp_path, wrapped):
    content = f'text\tlabel\n{wrapped}\tx\n"We will see," she said\ty\nplain\ty\n'
    refused(write(tmp_path / "a.tsv", content), "line 3", "1 lines where they do and 1 like this one", ".jsonl")


def test_a_doubled_quote_speaks_for_wrapping_whatever_the_numbers(tmp_path):
    content = tabs(LITERAL * 4) + '"he said ""no"""\tx\n'
    refused(write(tmp_path / "a.tsv", content), "quotes must wrap whole fields on every line or on none")


def test_a_quoted_tsv_is_unwrapped(tmp_path):
    rows = [*TRAIN, ("a\ttab", "fruit"), ("two\nlines", "animal")]
    assert rows_of(tmp_path / "a.tsv", table(rows, "\t")) == rows
    assert rows_of(tmp_path / "b.tsv", table(TRAIN, "\t")) == TRAIN


def test_an_odd_number_of_tabs_in_a_tsv_without_quoting_is_placed(tmp_path):
    content = tabs([*LITERAL, ("one\ttab", "x")])
    refused(write(tmp_path / "a.tsv", content), "line 7: every line must have 2 fields like the first, got 3")


def test_one_column_cannot_tell_whether_rows_span_lines(tmp_path):
    with pytest.raises(InputError, match="line 2: quotes must wrap"):
        read_table(write(tmp_path / "a.tsv", 'text\n"three\nmice"\n'), ["text"])


def test_a_csv_with_a_quotation_left_open_is_refused(tmp_path):
    """Every field is well-formed by RFC 4180, but lines 3 and 4 are rows by themselves."""
    content = 'text,label\n"good, food",pos\n"we had the room,pos\ncold soup,neg\nwoke us . ",neg\nfine,pos\n'
    refused(write(tmp_path / "a.csv", content), "line 3: a quotation must not run over lines", "ends on line 5")
    label_first = 'label,text\nx,one\ny,"two\nx,three\ny,four"\n'
    refused(write(tmp_path / "b.csv", label_first), "line 3: a quotation must not run over lines")


def test_a_text_of_several_lines_is_one_row(tmp_path):
    rows = [("a, b", "x"), ("one, two\nthree, four\nfive", "y"), ("first\n\nthird", "x"), ("six", "y")]
    assert rows_of(tmp_path / "a.csv", table(rows)) == rows


# ---- columns and separators


def test_only_wanted_columns_need_a_name_of_their_own(tmp_path):
    content = 'text,label,,\n"a, b",x,,\nb,y\nc,x,\nd,y,,spilt\n'
    assert [label for _, label in rows_of(tmp_path / "a.csv", content)] == ["x", "y", "x", "y"]
    (note,) = read_table(tmp_path / "a.csv", ["text", "label"]).notes
    assert note == "a.csv has 1 rows with something in columns without a name, not read"
    twice = "v1,text,label,v1\n1,a,x,2\n1,b,y,2\n"
    assert rows_of(tmp_path / "b.csv", twice) == [("a", "x"), ("b", "y")]
    with pytest.raises(InputError, match="column names must differ, got 'v1' more than once"):
        rows_of(tmp_path / "b.csv", twice, text="v1")
    refused(write(tmp_path / "c.csv", "text,label,,\na,x,,\nb\n"), "line 3", "4 fields like the first, got 1")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", 'text;label\n"a; b";x\nc, d;y\n', "a.csv is separated by semicolons, not by commas"),
        ("a.csv", "text\tlabel\na; b\tx\nc, d\ty\n", "a.csv is separated by tabs, not by commas"),
        ("a.tsv", 'text,label\na; b,x\n"c, d",y\n', "a.tsv is separated by commas, not by tabs"),
        ("a.csv", "sep=|\ntext|label\na; b|x\nc, d|y\n", "a.csv is separated by vertical bars, not by commas"),
        ("a.csv", "text;label;a, b\na; b;x;\nc, d;y;\n".replace("a; b", '"a; b"'), "separated by semicolons"),
    ],
)
def test_another_separator_is_read_where_the_first_line_makes_it_plain(tmp_path, name, content, says):
    assert rows_of(tmp_path / name, content) == [("a; b", "x"), ("c, d", "y")]
    assert says in read_table(tmp_path / name, ["text", "label"]).notes[0]


def test_a_separator_that_is_not_plain_must_be_given(tmp_path):
    refused(write(tmp_path / "a.csv", "a;b|c\n1;2|3\n"), "line 1", "got ';' and '|'", "data.separator = ';'")
    path = write(tmp_path / "b.csv", "1;good, cheap\n2;bad, dear\n1;fine, I say\n2;no, never\n")  # no header
    refused(path, "data.text must name one of the columns '1;good', 'cheap'")
    data = load_path(path, form=TableFormat(separator=";"))
    assert {*data.train_texts, *data.test_texts} == {"good, cheap", "bad, dear", "fine, I say", "no, never"}
    refused(write(tmp_path / "c.csv", "Text;Class\na;x\n"), "'Text', 'Class'", "separated by semicolons")


def test_lines_keep_their_numbers_behind_excels_hint(tmp_path):
    refused(write(tmp_path / "a.csv", "sep=;\ntext;label\na;x\nb\n"), "line 4", "got 1")


def test_columns_of_a_file_without_a_header_can_be_named(tmp_path):
    form = TableFormat(columns=("label", "body"))
    content = "pos,good food\nneg,bad food\npos,fine\nneg,dear\n"
    rows = rows_of(tmp_path / "a.csv", content, text="body", form=form)
    assert rows[0] == ("good food", "pos")
    refused(tmp_path / "a.csv", "one of the columns 'label', 'body' (from data.columns), got 'text'", form=form)
    wrong = TableFormat(columns=("label", "title", "body"))
    refused(tmp_path / "a.csv", "line 1: every line must have 3 fields like data.columns, got 2", form=wrong)
    write(tmp_path / "b.csv", "label,body\n" + content)
    refused(tmp_path / "b.csv", "line 1: data.columns must be left out for a file with a header", form=form)


def test_ag_news_form_by_a_setting_is_the_one_that_is_recognised(tmp_path):
    folder = folder_with(tmp_path, AG_TRAIN, '"2","Match","Drawn."\n')
    data = load_path(folder, form=TableFormat(columns=("label", "title", "description")))
    assert same(data, load_path(folder))
    other = TableFormat(columns=("label", "headline", "text"))
    assert load_path(folder, form=other).label_names == ["1", "2", "3", "4"]


# ---- encodings and endings

RUSSIAN = "text,label\nочень хорошо,да\nочень плохо,нет\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_known_by_its_byte_order_mark(tmp_path, encoding):
    rows = rows_of(tmp_path / "a.csv", RUSSIAN.replace("\n", "\r\n").encode(encoding))
    assert rows == [("очень хорошо", "да"), ("очень плохо", "нет")]
    if encoding != "utf-8":  # a mark is surer than a setting, which is for all files
        assert rows_of(tmp_path / "b.csv", RUSSIAN.encode(encoding), form=TableFormat("cp1251")) == rows


@pytest.mark.parametrize("encoding", ["windows-1251", "gb18030", "utf-16-le", "utf-16-be"])
def test_any_other_encoding_must_be_named(tmp_path, encoding):
    path = write(tmp_path / "a.csv", RUSSIAN.encode(encoding))
    message = refused(path, "a.csv", "the file must be UTF-8", "data.encoding")
    assert "iconv" not in message
    assert rows_of(path, RUSSIAN.encode(encoding), form=TableFormat(encoding)) == [
        ("очень хорошо", "да"),
        ("очень плохо", "нет"),
    ]


def test_a_wrong_encoding_is_placed(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,x\nb\xff,y\n".encode("latin-1"))
    refused(path, "line 3: the file must be gb18030, got byte 0xff", "data.encoding", form=TableFormat("gb18030"))
    refused(path, "data.encoding must be one that Python knows", "got 'klingon'", form=TableFormat("klingon"))


@pytest.mark.parametrize("ending", ["CSV", "Tsv", "ndjson", "JSONL", "json", "parquet"])
@pytest.mark.parametrize("gz", ["", ".gz", ".GZ"])
def test_every_ending_gives_the_same_data(tmp_path, ending, gz):
    rows = [(f"{text}, or not", label) for text, label in TRAIN]
    plain = tmp_path / "plain"
    kind = {"CSV": ".csv", "Tsv": ".tsv", "parquet": ".parquet"}.get(ending, ".jsonl")
    write_rows(plain.with_suffix(kind), rows)
    data = plain.with_suffix(kind).read_bytes()
    if ending == "json":
        data = json.dumps([{"text": text, "label": label} for text, label in rows], indent=1).encode()
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("Train", "test"):
        write(folder / f"{split}.{ending}{gz}", gzip.compress(data) if gz else data)
    loaded = load_path(folder)
    assert list(zip(loaded.train_texts, [loaded.label_names[i] for i in loaded.train_labels], strict=True)) == rows
    assert loaded.train_texts == loaded.test_texts


def test_json_lines_may_be_called_json(tmp_path):
    write_rows(tmp_path / "a.jsonl", TRAIN)
    assert same(load_path(tmp_path / "a.jsonl"), load_path((tmp_path / "a.jsonl").rename(tmp_path / "a.json")))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('[{"text": "a", "label": 1}, 5]', "row 2: a row must be a JSON object, got int"),
        ('[{"text": "a"', "must be a JSON array of objects"),
        ('{\n"text": ["a"]\n}', "line 1: the line must be one JSON object, or the whole file an array of objects"),
    ],
)
def test_a_malformed_json_file_is_placed(tmp_path, content, part):
    refused(write(tmp_path / "a.json", content), part)


def test_a_damaged_gz_file_is_refused(tmp_path):
    whole = gzip.compress(table(TRAIN).encode())
    for number, data in enumerate((whole[:-9], b"no gzip", whole[:20] + b"x" + whole[21:])):
        refused(write(tmp_path / f"{number}.csv.gz", data), "must be whole and compressed by gzip")


def test_parquet_of_another_name_keeps_its_checks(tmp_path):
    pq.write_table(pa.table({"text": ["a", None], "label": [1, 2]}), tmp_path / "a.PARQUET")
    refused(tmp_path / "a.PARQUET", "row 2: a text must not be empty or missing")
