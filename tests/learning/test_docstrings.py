"""Promises of the offline data set: balanced, unique, split by file, masked, and the same on every run."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from splitrank.errors import InputError
from splitrank.learning import docstrings
from splitrank.learning.docstrings import MAX_WORDS, MIN_WORDS, load_docstrings, mask


@pytest.fixture(scope="module")
def data():
    return load_docstrings(train_per_author=200, test_per_author=50)


def test_classes_are_balanced_and_take_turns(data):
    assert data.label_names == ["stdlib", "scipy", "torch", "transformers"]
    assert data.train_labels.tolist() == [0, 1, 2, 3] * 200
    assert data.test_labels.tolist() == [0, 1, 2, 3] * 50
    assert len(data.train_texts) == 800
    assert len(data.test_texts) == 200


def test_no_text_occurs_twice(data):
    texts = data.train_texts + data.test_texts
    assert len(set(texts)) == len(texts)


def test_texts_are_plain_english_of_bounded_length(data):
    for text in data.train_texts + data.test_texts:
        assert MIN_WORDS <= len(text.split()) <= MAX_WORDS
        assert re.fullmatch(r"[a-z .,;:'?!-]+", text), text


def test_names_of_the_authors_are_gone(data):
    names = re.compile(r"\b(python|numpy|scipy|torch|pytorch|transformers|hugging|huggingface|bert|llama)\b")
    assert not [text for text in data.train_texts + data.test_texts if names.search(text)]


def test_the_source_names_versions_and_fingerprint(data):
    assert re.search(r"Python 3\.\S+, scipy \S+, torch \S+, transformers \S+; fingerprint [0-9a-f]{12}$", data.source)
    assert data.source.endswith(data.fingerprint[:12])


def test_training_and_test_rows_come_from_different_files(tmp_path, monkeypatch):
    """Four made-up packages, three texts in each file, the file's name in each text; four and seven rows are wanted."""
    monkeypatch.setattr(docstrings, "_source_folder", lambda author: tmp_path / author)
    for author in docstrings.AUTHORS:
        (tmp_path / author).mkdir()
        for letter in "abcdefgh":
            texts = [
                f"the {count} text of {author[::-1]} in file {letter * 9} is here"
                for count in ("first", "next", "last")
            ]
            source = "".join(f'class A:\n    """{text}"""\n' for text in texts)
            (tmp_path / author / f"{letter}.py").write_text(source)
    data = load_docstrings(train_per_author=7, test_per_author=4)
    assert len(data.train_texts) == 28
    assert len(data.test_texts) == 16
    for author in range(4):
        train_files = {text.split()[-3] for text in data.train_texts[author::4]}
        test_files = {text.split()[-3] for text in data.test_texts[author::4]}
        assert len(train_files) == 3
        assert len(test_files) == 2
        assert not train_files & test_files


def test_the_files_order_on_disk_does_not_matter(data, monkeypatch):
    walk = docstrings.os.walk

    def backwards(folder):
        for root, subfolders, names in walk(folder):
            subfolders.reverse()
            yield root, subfolders, sorted(names, reverse=True)

    monkeypatch.setattr(docstrings.os, "walk", backwards)
    assert load_docstrings(train_per_author=200, test_per_author=50).fingerprint == data.fingerprint


def test_tests_and_bundled_packages_are_skipped(tmp_path):
    for name in [
        "good.py",
        "sub/good.py",
        "tests/a.py",
        "test/a.py",
        "sub/test_a.py",
        "site-packages/a.py",
        "_vendor/a.py",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = {file.relative_to(tmp_path).as_posix() for file in docstrings._source_files(tmp_path)}
    assert found == {"good.py", "sub/good.py"}


def test_all_docstrings_of_a_file_are_found_and_broken_files_skipped(tmp_path):
    words = "eight words are needed for a text here"
    source = f'"""module {words}"""\nif True:\n    class A:\n        """class {words}"""\n        def f(self):\n'
    source += (
        f'            """method {words}"""\ntry:\n    async def g():\n        """inner {words}"""\nfinally:\n    pass\n'
    )
    source += 'h = lambda: 0\ndef short():\n    """too short"""\n'
    (tmp_path / "good.py").write_text(source)
    found = [text.split()[0] for text in docstrings._docstrings(tmp_path / "good.py")]
    assert found == ["module", "class", "method", "inner"]
    (tmp_path / "bad.py").write_text("def {{ name }}:")
    assert list(docstrings._docstrings(tmp_path / "bad.py")) == []
    (tmp_path / "zero.py").write_bytes(b"\x00")
    assert list(docstrings._docstrings(tmp_path / "zero.py")) == []


@pytest.mark.parametrize(
    ("docstring", "left"),
    [
        ("Compute the mean of a NumPy array.", "compute the mean of a array."),
        ("Return :class:`torch.Tensor` or `None` for ``x``.", "return or for"),
        ("See https://example.org/a_b for Bert's and GPT-like models.", "see for and gpt-like models."),
        (
            "Sum of the rows.\n\nParameters\n----------\nx : array_like, optional\n    The input rows.",
            "sum of the rows. the input rows.",
        ),
        (
            "Sum.\n\nArgs:\n    dim (int, *optional*, defaults to 3): the axis.\n    keep: whether.\n",
            "sum. the axis. whether.",
        ),
        ("Sum.\n\n:param x: the first row\n:return: the sum", "sum. the first row the sum"),
        ("Sum of rows\n\n>>> f(1)\n2\n\nplain words stay", "sum of rows plain words stay"),
        ("Run it:\n```python\nx = 1\n```\nand wait.", "run it: and wait."),
        ("Calls my_function, os.path.join, camelCase, foo(1, 2) and x[0] in turn.", "calls and in turn."),
        ("The value, defaults to 1e-5, is small [1]_.", "the value, is small"),
        ("One\n  line\twith   gaps", "one line with gaps"),
    ],
)
def test_masking(docstring, left):
    assert mask(docstring, {"numpy", "bert"}) == left


def test_masking_cuts_long_texts():
    assert mask("word " * 300, set()) == " ".join(["word"] * MAX_WORDS)


def test_masking_takes_no_longer_on_strange_docstrings():
    for strange in (
        "(" * 5000,
        "a, " * 3000,
        "\n" * 5000,
        "x(" * 2000 + ")" * 2000,
        "`" * 4001,
        "$ " * 3000,
        "- " * 3000,
    ):
        mask(strange, set())


def test_a_missing_package_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find_spec(name))
    with pytest.raises(InputError, match="needs the package scipy, which is not installed; run: pip install scipy"):
        load_docstrings()


def test_a_package_without_sources_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match="needs 250 docstrings of stdlib, got 0; reinstall Python with its sources"):
        load_docstrings()
    find_spec = importlib.util.find_spec
    empty = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: empty if name == "scipy" else find_spec(name))
    with pytest.raises(InputError, match="docstrings of scipy, got 0; reinstall scipy or ask for fewer rows"):
        load_docstrings(train_per_author=10, test_per_author=5)


def test_the_full_set_is_neither_trivial_nor_hopeless():
    """Naive Bayes on words: well above chance (0.25), well below certainty."""
    data = load_docstrings()
    assert np.bincount(data.train_labels).tolist() == [750] * 4
    assert np.bincount(data.test_labels).tolist() == [250] * 4
    words = CountVectorizer(token_pattern=r"\S+", lowercase=False)
    model = MultinomialNB(alpha=0.1).fit(words.fit_transform(data.train_texts), data.train_labels)
    accuracy = model.score(words.transform(data.test_texts), data.test_labels)
    assert 0.6 < accuracy < 0.9
