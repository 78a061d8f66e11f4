"""The local history: one `metrics.csv` in the run directory, a row for every time of logging."""

from __future__ import annotations

import csv
import io
import logging
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from dictlearn.storage.atomic import write_text

log = logging.getLogger(__name__)

STEP = "step"
NAME = "metrics.csv"


class CsvHistory:
    """The table behind the logger; its file is complete after every row.

    Lightning's own CSV writer deletes the earlier file of a resumed run and keeps up to a hundred
    rows in memory, which a killed process takes with it; this one appends and keeps none.
    """

    def __init__(self, path: Path) -> None:
        """Go on with the table in `path`, or begin one there."""
        self.path = path
        self.columns = [STEP]
        if path.is_file():
            self._drop_torn_row()
            self.columns = next(csv.reader([_first_line(path)]), []) or [STEP]

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row; columns that are new stay empty in the rows before."""
        new = [key for key in row if key not in self.columns]
        if new or not self.path.is_file():
            self.columns += new
            write_text(self.path, self._lines([*self._rows(), row], header=True))
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines([row], header=False))

    def keep(self, n_rows: int) -> None:
        """Drop all but the first `n_rows` rows, and the columns that only the others have."""
        rows = self._rows()[:n_rows]
        filled = [key for key in self.columns if any(row[key] for row in rows)]
        self.columns = filled or [STEP]
        kept = [{key: row[key] for key in self.columns} for row in rows]
        write_text(self.path, self._lines(kept, header=True))

    def __len__(self) -> int:
        return len(self._rows())

    def _lines(self, rows: Iterable[Mapping[str, object]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _drop_torn_row(self) -> None:
        """Cut what a killed process left of its last row: half a number is a wrong number."""
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(self.path, complete)


class CsvLogger(Logger):
    """Writes `metrics.csv` straight into the run directory; the config lives in `.hydra`.

    Args:
        save_dir: the run directory.

    Attributes:
        n_rows: rows logged so far, in this process and in those that it goes on from.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self._history: CsvHistory | None = None
        self._waiting: list[dict[str, Any]] = []
        self._told = False
        self.n_rows = 0

    @property
    def name(self) -> str:
        """Empty: no folder of its own inside the run directory."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: numbers or tensors of one element, by name.
            step: of the optimizer.
        """
        values = {key: v.item() if isinstance(v, Tensor) else v for key, v in metrics.items()}
        self._waiting.append({STEP: step, **values})
        self.n_rows += 1
        self._write()

    def _write(self) -> None:
        """Write the rows that wait; where there is no room for one it waits on."""
        try:
            while self._waiting:
                self._table().append(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            self._history = None  # opened anew, it drops half a row
            if not self._told:
                log.warning(
                    "%s could not be written (%s): the run goes on, and the rows wait for room.",
                    self._folder / NAME,
                    error,
                )
            self._told = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that wait, the last time."""
        self._write()

    @rank_zero_only
    def rewind(self, n_rows: int) -> None:
        """Go back to the first `n_rows` rows: the run goes on from when it had written these."""
        table = self._table()
        if len(table) > n_rows:
            table.keep(n_rows)
        self.n_rows = len(table)

    def _table(self) -> CsvHistory:
        if self._history is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._history = CsvHistory(self._folder / NAME)
        return self._history

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the run directory holds the config already."""


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        return file.readline()
