"""The offline data set: who wrote this sentence? Docstrings of four libraries that every installation has.

The texts are English that people wrote; the classes are the standard library, scipy, torch and transformers. Whatever
gives the author away without reading is masked: names of packages and models, identifiers, code, addresses, and the
house style of docstrings (headings, underlines, parameter lists, roles, back-quotes, capitals). Training and test rows
come from different source files. Source files are only parsed, never imported. The result depends on the installed
versions alone: neither a seed nor the file system's order enters it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from splitrank.errors import InputError
from splitrank.learning.data import TextData, text_data
from splitrank.learning.text_rules import Split

AUTHORS = ("stdlib", "scipy", "torch", "transformers")
MIN_WORDS = 8
MAX_WORDS = 60

_MAX_FILE_BYTES = 100_000
_MAX_TEXTS_PER_FILE = 30
_MAX_CHARACTERS = 1_500  # of a docstring before masking; later ones would hardly be among its first 60 words
_SKIPPED_FOLDERS = {
    "__pycache__", "_vendor", "_external", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "testing",
    "tests",
}  # fmt: skip

_NAMES = {
    "accelerate", "aten", "autograd", "bitsandbytes", "c10d", "caffe", "caffe2", "cpython", "cublas", "cuda", "cudnn",
    "cupy", "dask", "deepspeed", "dynamo", "flax", "fortran", "gguf", "hf", "hugging", "huggingface", "inductor", "jax",
    "jython", "keras", "lapack", "blas", "matlab", "matplotlib", "mkl", "nccl", "numpy", "onnx", "openai", "pandas",
    "peft", "pickle", "posix", "pypi", "python", "pytorch", "safetensors", "scikit", "scipy", "sentencepiece",
    "sklearn", "stdlib", "sympy", "tensorflow", "tensorboard", "timm", "tkinter", "tokenizers", "torch", "torchaudio",
    "torchscript", "torchvision", "transformer", "transformers", "triton", "vllm", "xarray", "xla",
}  # fmt: skip

_HEADING = r"""(?im)^[ \t]*(?:arg(?:ument)?s?|param(?:eter)?s?|other\ parameters|keyword\ arg(?:ument)?s|kwargs|returns?
    |raises|yields|warns|warnings?|examples?|notes?|see\ also|references?|attributes|methods|shape|inputs?|outputs?
    |usage|tips?|todo|members|fields)[ \t]*:{0,2}[ \t]*$"""

# Applied in order; what matches becomes a space.
_MASKS = [
    re.compile(pattern, re.VERBOSE)
    for pattern in (
        r"(?s)```.*?(?:```|\Z)",  # fenced code
        r"(?m)^[ \t]*>>>.*(?:\n[ \t]*\S.*)*",  # an example session up to the next blank line
        r"(?m)^[ \t]*\.\.[ \t].*$",  # directives, comments and targets
        r"(?s)\$\$?[^$]{1,200}\$\$?",  # mathematics
        r"(?m)^[ \t]*[-=~^*\#+]{3,}.*$",  # underlines and tables
        _HEADING,
        r"(?m)^[ \t]*:\w+[^:\n]*:",  # :param x:
        r":[\w:+.-]+:`[^`]*`",  # roles
        r"``[^`]*``|`[^`]*`_{0,2}",  # back-quoted code
        r"\w*\[[^\[\]]*\]_?(?:\([^()\s]*\))?",  # brackets, citations and links
        r"(?m)^[ \t]*\*{0,2}\w[\w \t,*]*[ \t]:(?:[ \t].*)?$",  # x : array_like, optional
        r"(?m)^[ \t]*[-*]?[ \t]*\*{0,2}\w+[ \t]*\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)[ \t]*:",  # x (int, optional):
        r"(?m)^[ \t]*[-*]?[ \t]*\*{0,2}[\w.]+[ \t]*:(?=\s)",  # x: and Note:
        r"(?i)\boptional\b",
        r"(?i)\bdefaults?\b(?:\s+(?:is|to|value))*\s*[:=]?\s*(?:none|true|false|[\d.'\"]\S*)?",
        r"\b\w[\w.]*\([^()]*\)",  # calls
    )
]
# A word that looks like code: its punctuation, an address, a dotted name, camel case or a number.
_CODE = re.compile(r"[_\\=<>|{}~^%&$#/@\d]|\w\.\w|[a-z][A-Z]|[A-Z]{2,}[a-z]")
_WORD_END = re.compile(r"[^a-z]")
_SYMBOLS = re.compile(r"[^a-z\s.,;:'?!-]|(?<![a-z])['-]|['-](?![a-z])")
_LOOSE_PUNCTUATION = re.compile(r"(?:\s+[.,;:?!]+)+(?=\s|$)")
_REPEATED_PUNCTUATION = re.compile(r"([.,;:?!])[.,;:?!]+")


def load_docstrings(*, train_per_author: int = 750, test_per_author: int = 250) -> TextData:
    """Collect the data set from the installed packages.

    For every author the source files are taken in the order of the hash of their path. The first fill the test rows,
    the next ones the training rows; of one file at most 30 texts are used. A text has 8 to 60 words after masking
    (longer ones are cut there, so that training is quick) and occurs once in the whole set. Rows of the four authors
    take turns.

    Args:
        train_per_author: training rows for each of the four classes.
        test_per_author: test rows for each of the four classes.

    Raises:
        InputError: a package is missing, or has too few docstrings.
    """
    folders = {author: _source_folder(author) for author in AUTHORS}
    names = _proper_names(folders["transformers"])
    seen: set[str] = set()
    train: list[list[str]] = []
    test: list[list[str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other people's source code
        for author, folder in folders.items():
            texts_by_file = _texts_by_file(author, folder, names, seen)
            test.append(_take(texts_by_file, test_per_author, author))
            train.append(_take(texts_by_file, train_per_author, author))
    versions = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in AUTHORS[1:])]
    data = text_data(_in_turns(train), _in_turns(test), list(AUTHORS), f"docstrings of {', '.join(versions)}")
    return replace(data, source=f"{data.source}; fingerprint {data.fingerprint[:12]}")


def mask(docstring: str, names: set[str]) -> str:
    """Leave of a docstring its first 60 words of plain lower-case English, on one line.

    Args:
        docstring: as ``ast.get_docstring`` gives it.
        names: words to leave out, with what hangs on them (as in bert's and bert-like).
    """
    text = docstring[:_MAX_CHARACTERS]
    for pattern in _MASKS:
        text = pattern.sub(" ", text)
    plain = " ".join(word for word in text.split() if not _CODE.search(word))
    words = _SYMBOLS.sub(" ", plain.lower()).split()
    text = " ".join(word for word in words if _WORD_END.split(word, 1)[0] not in names)
    text = _REPEATED_PUNCTUATION.sub(r"\1", _LOOSE_PUNCTUATION.sub("", text))
    return " ".join(text.split()[:MAX_WORDS])


def _source_folder(author: str) -> Path:
    if author == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(author)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the offline data set needs the package {author}, which is not installed; run: pip install {author}"
        )
    return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def _proper_names(transformers: Path) -> set[str]:
    """Names of libraries, and of the models that transformers has a folder for."""
    models = transformers / "models"
    folders = [entry.name for entry in models.iterdir() if entry.is_dir()] if models.is_dir() else []
    return _NAMES | {part for name in folders for part in (name, name.split("_")[0]) if len(part) > 3}


def _source_files(folder: Path) -> list[Path]:
    """Python files of a package but not of its tests, in the order of the hash of their path within it."""
    found = []
    for root, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [Path(root, name) for name in names if name.endswith(".py") and not name.startswith("test_")]
    return sorted(found, key=lambda file: hashlib.sha256(file.relative_to(folder).as_posix().encode()).digest())


def _texts_by_file(author: str, folder: Path, names: set[str], seen: set[str]) -> Iterator[list[str]]:
    """Yield the masked texts of one source file after the other, leaving out and noting what was seen before."""
    for file in _source_files(folder):
        texts: list[str] = []
        for docstring in _docstrings(file):
            if len(texts) == _MAX_TEXTS_PER_FILE:
                break
            text = mask(docstring, names)
            if text.count(" ") >= MIN_WORDS - 1 and text not in seen:
                seen.add(text)
                texts.append(text)
        yield texts


def _docstrings(file: Path) -> Iterator[str]:
    source = file.read_bytes()
    if len(source) > _MAX_FILE_BYTES:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file for another version of Python
        return
    yield from _docstrings_below(tree)


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    """Walk the statements only: expressions are most of a tree and hold no docstrings."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring and len(docstring.split()) >= MIN_WORDS:
            yield docstring
    for block in ("body", "orelse", "handlers", "finalbody"):
        statements = getattr(node, block, None)
        if isinstance(statements, list):  # the body of a lambda is an expression
            for statement in statements:
                yield from _docstrings_below(statement)


def _take(texts_by_file: Iterator[list[str]], count: int, author: str) -> list[str]:
    """Take ``count`` texts from whole files; what the last file has beyond that is left out."""
    taken: list[str] = []
    while len(taken) < count:
        texts = next(texts_by_file, None)
        if texts is None:
            raise InputError(
                f"the offline data set needs {count} docstrings of {author}, got {len(taken)}; "
                f"reinstall {'Python with its sources' if author == 'stdlib' else author} or ask for fewer rows"
            )
        taken += texts
    return taken[:count]


def _in_turns(texts: list[list[str]]) -> Split:
    """Lay the classes out in turns: row i has class i mod 4."""
    rows = [text for turn in zip(*texts, strict=True) for text in turn]
    return Split(rows, np.arange(len(rows), dtype=np.int64) % len(texts))
