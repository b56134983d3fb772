"""Find the files of a folder that hold its splits, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from splitrank.errors import InputError
from splitrank.learning.table_files import ENDINGS_TEXT, split_name

TRAIN = ("train",)
TEST = ("test",)
VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class SplitFiles:
    """A folder's tables, each a list because a folder may hold several that could be meant."""

    folder: Path
    train: list[Path]
    test: list[Path]
    validation: list[Path]
    others: list[Path]

    @classmethod
    def of(cls, folder: Path) -> SplitFiles:
        """Sort the files of a folder by their names, in capitals or not; what is no table is left out."""
        tables = sorted(entry for entry in folder.iterdir() if split_name(entry.name)[1])
        stem = {entry: split_name(entry.name)[0].lower() for entry in tables}
        train, test, validation = (
            [entry for entry in tables if stem[entry] in names] for names in (TRAIN, TEST, VALIDATION)
        )
        others = [entry for entry in tables if entry not in (*train, *test, *validation)]
        return cls(folder, train, test, validation, [entry for entry in others if not entry.name.startswith(".")])

    def only(self, split: str) -> Path | None:
        """Return the one file of a split, ``"train"``, ``"test"`` or ``"validation"``; None if there is none.

        Raises:
            InputError: there are several.
        """
        files: list[Path] = getattr(self, split)
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise InputError(
                f"data.path must hold one {split} file, got {names} in {self.folder}; leave one or name it directly"
            )
        return files[0] if files else None

    def training_file(self) -> Path:
        """Return the file to train on.

        Raises:
            InputError: there is none, or there are several.
        """
        file = self.only("train")
        if file is None:
            found = ", ".join(sorted(entry.name for entry in self.folder.iterdir())[:5]) or "an empty folder"
            raise InputError(
                f"data.path must hold a file called train with one of the endings {ENDINGS_TEXT}, "
                f"got {found} in {self.folder}"
            )
        return file

    def to_test_on(self) -> Iterator[Path]:
        """Yield the test file, then the validation file, of those that there are."""
        for split in ("test", "validation"):
            file = self.only(split)
            if file is not None:
                yield file

    @property
    def tables(self) -> list[str]:
        """Names of all tables in the folder."""
        return sorted(file.name for file in (*self.train, *self.test, *self.validation, *self.others))
