"""Text from files of this machine."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dictlearn.errors import InputError, choice, nearest, whole_number
from dictlearn.text import readers
from dictlearn.text.documents import Document, check_fraction, check_limit, digest, limited
from dictlearn.text.splitting import articles, has_articles, row_sections, sections

SPLITS = ("auto", "file", "heading", "section")
_HASHED_BYTES = 8 * 2**20  # up to this size a file is known by its content, above by its mtime
_FORMAT_VERSION = 1  # counted up whenever the same files would give other documents


def missing(path: str) -> InputError:
    """Return the error for a path that does not exist, with the nearest name that does."""
    wanted = Path(path).expanduser()
    parent = wanted.parent
    try:
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    except OSError:
        names = []
    hint = nearest(wanted.name, names) or ("" if parent.is_dir() else f" Nor does {parent}.")
    return InputError(f"text.path={path} does not exist.{hint}")


def files_fingerprint(root: Path, files: list[Path]) -> list[list[object]]:
    """Return name, size and content hash (mtime for large files) of each file."""
    return [[path.relative_to(root).as_posix(), *_state(path)] for path in files]


def _state(path: Path) -> list[object]:
    try:
        status = path.stat()
        if status.st_size > _HASHED_BYTES:
            return [status.st_size, status.st_mtime_ns]
        return [status.st_size, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()]
    except OSError as error:
        raise InputError(f"text.path: {path} cannot be read: {error.strerror}.") from error


def was_saved_to_disk(folder: Path) -> bool:
    """Tell whether a folder was written by ``save_to_disk`` of `datasets`."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder and its sub-folders, sorted, without the hidden ones."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and _is_visible(p, folder))


@dataclass(frozen=True)
class LocalText:
    """A file, a glob or a folder (with its sub-folders) of text, jsonl, json or parquet files.

    Attributes:
        path: the file, the glob in quotes (``'corpus/**/*.txt'``) or the folder.
        column: of a jsonl, json or parquet file: the column that holds the text.
        split_documents: what a document is. ``heading``: a WikiText article, from one level-1
            heading (`` = Title = ``) to the next. ``file``: a whole file. ``section``: a run of
            whole paragraphs of at least 2,000 characters. ``auto``: of a table, a row; of a text
            file, ``heading`` where it has such headings, else ``file`` when several files match,
            else ``section``.
        max_documents: only the first so many documents; None: all.
        min_characters: shorter documents are left out.
        validation_fraction: share of the documents that is never trained on, in [0, 1).

    Raises:
        InputError: an option is unknown or out of its bounds. The files themselves are looked at
            when they are first needed.
    """

    path: str
    column: str = "text"
    split_documents: str = "auto"
    max_documents: int | None = None
    min_characters: int = 0
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        choice("text.split_documents", self.split_documents, SPLITS)
        check_fraction(self.validation_fraction)
        minimum = whole_number("text.min_characters", self.min_characters, 0)
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "min_characters", minimum)
        object.__setattr__(self, "max_documents", check_limit(self.max_documents))

    @property
    def name(self) -> str:
        """Return ``local:`` and the last part of the path."""
        return f"local:{Path(self.path).expanduser().name or self.path}"

    def fingerprint(self) -> str:
        """Return a hash of the files (names, sizes, contents or mtimes) and of the options."""
        root, files = self._files()
        options = [self.column, self.split_documents, self.max_documents, self.min_characters]
        return digest(["local", _FORMAT_VERSION, files_fingerprint(root, files), options])

    def documents(self) -> Iterator[Document]:
        """Yield the documents of the files in sorted order; ids are ``relative/path#number``.

        Raises:
            InputError: nothing matches, a file cannot be read, or there is no text at all.
        """
        origin = f"text.path={self.path}"
        return limited(self._all(), self.min_characters, self.max_documents, origin)

    def _all(self) -> Iterator[Document]:
        root, files = self._files()
        for path in files:
            for index, text in enumerate(self._texts(path, alone=len(files) == 1)):
                yield Document(f"{path.relative_to(root).as_posix()}#{index}", text)

    def _texts(self, path: Path, alone: bool) -> Iterator[str]:
        """Yield the documents of one file."""
        split = self.split_documents
        table = readers.is_table(path)
        if split == "auto" and not table:
            with_titles = has_articles(readers.lines(path))
            split = "heading" if with_titles else "section" if alone else "file"
        rows = readers.rows(path, self.column) if table else readers.lines(path)
        stripped = (row.rstrip("\r\n") for row in rows)
        if split == "file":
            return iter(["\n".join(stripped)])
        if split == "heading":
            return articles(stripped)
        if split == "section":
            return row_sections(stripped) if table else sections(stripped)
        return stripped

    def _files(self) -> tuple[Path, list[Path]]:
        """Return the folder that ids are relative to, and the files in sorted order."""
        path = Path(self.path).expanduser()
        if path.is_file():
            return path.parent, [path]
        if path.is_dir():
            return path, self._in_folder(path)
        if not glob.has_magic(self.path):
            raise missing(self.path)
        first_magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        root, pattern = Path(*path.parts[:first_magic]), str(Path(*path.parts[first_magic:]))
        found = (file for file in root.glob(pattern) if file.is_file())
        files = sorted({file for file in found if _is_visible(file, root)})
        if not files:
            raise InputError(f"text.path={self.path} matches no file: check the pattern.")
        return root, files

    def _in_folder(self, folder: Path) -> list[Path]:
        if was_saved_to_disk(folder):
            raise InputError(
                f"text.path={self.path} was written by save_to_disk of datasets: read it with "
                "text=hub."
            )
        files = [path for path in visible_files(folder) if readers.is_text(path)]
        if not files:
            raise InputError(
                f"text.path={self.path} is a folder without txt, md, jsonl, json or parquet files."
            )
        return files
