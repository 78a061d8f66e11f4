"""Text from the Hugging Face hub, or from a copy of a dataset on this machine."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dictlearn.errors import InputError, choice, one_line, whole_number
from dictlearn.outage import is_outage
from dictlearn.text import readers
from dictlearn.text.documents import (
    Document,
    Place,
    Unfinished,
    check_fraction,
    check_limit,
    digest,
    limited,
)
from dictlearn.text.local import (
    LocalText,
    files_fingerprint,
    missing,
    visible_files,
    was_saved_to_disk,
)
from dictlearn.text.splitting import articles, has_articles
from dictlearn.text.steady import Interrupted, steady_batches

logger = logging.getLogger(__name__)

SPLITS = ("rows", "headings")
_FORMAT_VERSION = 1  # counted up whenever the same dataset would give other documents
_BATCH_ROWS = 1000
_PROBE_SECONDS = 8.0
_DATA_SUFFIXES = readers.TABLE_SUFFIXES | {".csv", ".tsv", ".arrow"}


def _reason(error: Exception) -> str:
    """Return the innermost cause of an error of `datasets` on one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (one_line(error) or type(error).__name__)[:300].rstrip(".")


def _download(path: str) -> str:
    """Return how to have a dataset on this machine."""
    return (
        f"`hf download {path} --repo-type dataset --local-dir FOLDER`, then give text.path=FOLDER"
    )


@contextmanager
def _cached_when_unreachable(path: str, revision: str | None) -> Iterator[bool]:
    """Yield whether the hub answers; where it does not, the block sees only what is cached.

    Without this, `datasets` retries for half a minute or more before it looks into its cache.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    reachable = True
    try:
        HfApi().dataset_info(path, revision=revision, timeout=_PROBE_SECONDS)
    except (HfHubHTTPError, ValueError):
        pass  # the hub answered, or will not be asked: load_dataset finds the words
    except Exception:  # httpx, requests or OS errors, depending on the version
        reachable = False
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not reachable:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield reachable
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@dataclass(frozen=True)
class HubText:
    """A dataset of the Hugging Face hub, or files of this machine in its place.

    A `path` that exists here is read here: a file, a glob or a folder of text as `LocalText` does,
    a folder with tables (for example a downloaded dataset) or one written by ``save_to_disk`` with
    `datasets`.

    Attributes:
        path: the dataset's name, e.g. ``Salesforce/wikitext``, or a local path.
        subset: name of the dataset's configuration; None: its only one.
        split: e.g. ``train``.
        column: the column that holds the text.
        streaming: read over the network row by row instead of downloading the dataset first.
        revision: commit, tag or branch of the dataset; None: the newest. Tokenised text is found
            again by these options, so name a revision where the dataset may change.
        split_documents: ``rows``: a row is a document. ``headings``: rows of WikiText are joined
            to articles, from one level-1 heading (`` = Title = ``) to the next.
        min_characters: shorter documents are left out.
        max_documents: only the first so many documents; None: all.
        validation_fraction: share of the documents that is never trained on, in [0, 1).

    Raises:
        InputError: an option is unknown or out of its bounds.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    streaming: bool = False
    revision: str | None = None
    split_documents: str = "rows"
    min_characters: int = 0
    max_documents: int | None = None
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
        """Return ``hub:`` and the dataset's name, or the name of the local text."""
        here = Path(self.path).expanduser().exists()
        return f"local:{Path(self.path).expanduser().name}" if here else f"hub:{self.path}"

    def fingerprint(self) -> str:
        """Return a hash of the options, and of the files when they are on this machine."""
        local = self._local()
        if local is not None:
            return local.fingerprint()
        folder = Path(self.path).expanduser()
        where: object = [self.path, self.revision]
        if folder.is_dir():
            where = files_fingerprint(folder, visible_files(folder))
        rows = [self.subset, self.split, self.column]
        options = [self.split_documents, self.min_characters, self.max_documents]
        return digest(["hub", _FORMAT_VERSION, where, rows, options])

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the order of the rows.

        Raises:
            InputError: the dataset, its subset, split or column cannot be had, or holds no text.
            Unfinished: a stream broke off, and its rows are documents.
        """
        local = self._local()
        return self._limited(None) if local is None else local.documents()

    def documents_from(self, place: Place) -> Iterator[Document]:
        """Yield the documents from the place on at which `Unfinished` was raised."""
        return self._limited(place)

    def _limited(self, place: Place | None) -> Iterator[Document]:
        origin, before = f"text.path={self.path}", place.documents if place else 0
        limits = (self.min_characters, self.max_documents, origin, before)
        return limited(self._all(place), *limits)

    def _local(self) -> LocalText | None:
        """Return the local text that `path` means; None: it is for `datasets` to read."""
        path = Path(self.path).expanduser()
        if path.is_dir():
            data = (readers.suffix(file) in _DATA_SUFFIXES for file in visible_files(path))
            if was_saved_to_disk(path) or any(data):
                return None
        elif not path.is_file() and not glob.has_magic(self.path):
            if path.is_absolute() or self.path.startswith(".") or readers.is_text(path):
                raise missing(self.path)
            return None
        limits = (self.max_documents, self.min_characters, self.validation_fraction)
        return LocalText(self.path, self.column, self._local_split(path), *limits)

    def _local_split(self, path: Path) -> str:
        """Return ``heading`` for a table of WikiText rows; `LocalText` sees to the rest."""
        joined = self.split_documents == "headings" and path.is_file() and readers.is_table(path)
        return "heading" if joined and has_articles(readers.rows(path, self.column)) else "auto"

    def _all(self, place: Place | None) -> Iterator[Document]:
        texts = self._texts(place)
        if self.split_documents == "headings":
            texts = articles(text.rstrip("\r\n") for text in texts)
        for index, text in enumerate(texts, place.rows if place else 0):
            yield Document(f"{self.path}/{self.split}#{index}", text)

    def _texts(self, place: Place | None) -> Iterator[str]:
        where = f"text.path={self.path} (text.subset={self.subset}, text.split={self.split})"
        try:
            for batch in steady_batches(self._rows, _BATCH_ROWS, place):
                readers.check_column(self.column, batch, self.path)
                for value in batch[self.column]:
                    yield readers.check_text(value, self.column, self.path)
        except InputError:
            raise
        except Interrupted as interrupted:
            broke_off = (
                f"{where} broke off after {interrupted.place.rows} rows and does not answer any "
                f"more ({_reason(interrupted)}): run again later"
            )
            instead = f"or first download it by {_download(self.path)}."
            if self.split_documents == "headings":  # an article may have begun
                raise InputError(f"{broke_off}, {instead}") from interrupted
            raise Unfinished(
                f"{broke_off} to go on from there, {instead}", interrupted.place
            ) from interrupted
        except Exception as error:  # whatever `datasets` and its readers raise
            if not is_outage(error):
                raise InputError(f"{where} cannot be read: {_reason(error)}.") from error
            raise InputError(
                f"{where} broke off while it was downloaded ({_reason(error)}): run again later, "
                f"or first download it by {_download(self.path)}."
            ) from error

    def _rows(self) -> Any:
        rows = self._load()
        columns = rows.column_names
        if columns is None:  # a stream may not know them before its first row
            return rows
        readers.check_column(self.column, columns, self.path)
        return rows.select_columns([self.column])

    def _load(self) -> Any:
        """Return the rows, a Dataset or an IterableDataset."""
        import datasets

        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return self._load_folder(folder)
        options: dict[str, Any] = {"split": self.split, "streaming": self.streaming}
        with _cached_when_unreachable(self.path, self.revision) as reachable:
            try:
                return datasets.load_dataset(
                    self.path, self.subset, revision=self.revision, **options
                )
            except Exception as error:  # `datasets` has several for what is not in its cache
                if reachable:
                    raise
                raise InputError(
                    f"text.path={self.path} is not on this machine and the Hugging Face hub "
                    f"cannot be reached: where there is a network, run {_download(self.path)}, "
                    "or take text=installed_docs."
                ) from error

    def _load_folder(self, folder: Path) -> Any:
        """Return the rows of a dataset in a folder; nothing is copied to a cache."""
        import datasets

        if was_saved_to_disk(folder):
            saved = datasets.load_from_disk(str(folder))
            if not isinstance(saved, dict):
                return saved
            return saved[choice("text.split", self.split, saved)]
        subset, data_dir = self.subset, None
        if subset is not None and subset not in datasets.get_dataset_config_names(str(folder)):
            data_dir = subset if (folder / subset).is_dir() else None
            logger.info("%s has no subset named %s: reading %s", folder, subset, data_dir or "all")
            subset = None
        options: dict[str, Any] = {"split": self.split, "streaming": True}
        return datasets.load_dataset(str(folder), subset, data_dir=data_dir, **options)
