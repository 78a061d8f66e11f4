"""First sight of the factors: at every validation, a page with what they fire on so far."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from dictlearn import processes
from dictlearn.analysis.code_table import CodeTable, Observed, code_table
from dictlearn.analysis.importance import Importance, best_by_peak, importance, variety
from dictlearn.analysis.survey import Survey, Surveyor
from dictlearn.codes import Codes
from dictlearn.errors import InputError, whole_number
from dictlearn.explorer.factors_page import FactorsPage, Group, render
from dictlearn.loggers.report import log_page
from dictlearn.mesh import mesh_of
from dictlearn.seeding import generator
from dictlearn.storage.atomic import write_text

log = logging.getLogger(__name__)

TAIL = 250
"""The importance score looks at one in so many tokens, at most."""


class FactorGallery(pl.Callback):
    """Writes ``factors.html`` into the run directory at every validation.

    The codes of the held-out text (what ``validation_step`` returns under ``"codes"``) are kept on
    the CPU for as long as the validation runs, positive ones only; the page shows the best factors
    of every layer and a random sample of all.

    Args:
        run_dir: folder the page is written to.
        per_layer: factors shown for every layer at which factors peak.
        sample: number of atoms drawn at random, the same ones at every validation.
        contexts: strongest contexts at the layer where a factor peaks.
        contexts_elsewhere: strongest contexts at every other layer (one where it is faint).
        top: number of largest codes in the importance score; at most one in 250 of the held-out
            tokens, so that the score is about the largest codes on a short text, too.
        window: tokens shown to each side of a target.
        max_codes: positive codes kept per process; the text after that is not looked at.
        file: name of the page.
        seed: of the random sample.

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        per_layer: int = 6,
        sample: int = 16,
        contexts: int = 5,
        contexts_elsewhere: int = 2,
        top: int = 200,
        window: int = 10,
        max_codes: int = 30_000_000,
        file: str = "factors.html",
        seed: int = 0,
    ) -> None:
        name = "callbacks.gallery."
        self.path = Path(run_dir) / _file_name(name + "file", file)
        self.per_layer = whole_number(name + "per_layer", per_layer, 0)
        self.sample = whole_number(name + "sample", sample, 0)
        self.top = whole_number(name + "top", top)
        self.max_codes = whole_number(name + "max_codes", max_codes)
        self.seed = whole_number(name + "seed", seed, 0)
        self.survey = Survey(
            contexts=whole_number(name + "contexts", contexts),
            contexts_elsewhere=whole_number(name + "contexts_elsewhere", contexts_elsewhere, 0),
            window=whole_number(name + "window", window, 0),
        )
        self._off = False
        self._group: Any = None
        self._start()

    def _start(self) -> None:
        self._parts: list[Observed] = []
        self._n_codes = 0
        self._n_atoms = 0
        self._n_skipped = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the data can show the text of a place; there is no page of plain vectors.

        Raises:
            InputError: it cannot.
        """
        data = getattr(trainer, "datamodule", None)
        self._off = not getattr(data, "shows_text", True)
        if self._group is None and processes.world_size() > 1:
            # By way of the CPU: NCCL would have the codes of all processes in the memory of a GPU.
            self._group = torch.distributed.new_group(backend="gloo")
        if self._off and stage == "fit" and trainer.is_global_zero:
            log.info("The vectors come without a text: there is no %s.", self.path.name)
        if not (hasattr(data, "context") and hasattr(data, "decode_tokens")):
            raise InputError(
                "callbacks.gallery needs a data module with context() and decode_tokens(); "
                "leave the gallery out with '~callbacks.gallery'."
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation."""
        self._start()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the positive codes of the batch.

        Raises:
            InputError: ``validation_step`` does not return the codes.
        """
        if trainer.sanity_checking or self._off:
            return
        if not isinstance(outputs, dict) or not isinstance(outputs.get("codes"), Codes):
            raise InputError(
                "callbacks.gallery needs a validation_step that returns {'codes': Codes}; "
                "leave the gallery out with '~callbacks.gallery'."
            )
        if mesh_of(trainer).dictionary.rank > 0:
            return  # of those that have seen the same rows one keeps the codes
        codes: Codes = outputs["codes"]
        self._n_atoms = codes.n_atoms
        if self._n_codes >= self.max_codes:
            self._n_skipped += len(batch.layer)
            return
        self._parts.append(observe(codes, batch))
        self._n_codes += len(self._parts[-1].value)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page (process 0, with the codes of all processes)."""
        if trainer.sanity_checking or self._off:
            return
        mine = Observed.join(self._parts)
        parts, skipped, n_atoms = _gather(mine, self._n_skipped, self._n_atoms, self._group)
        self._start()
        if not trainer.is_global_zero or n_atoms == 0:
            return
        seen = Observed.join(parts)
        log.debug("Factor gallery: %d codes, %.0f MB", len(seen.value), seen.nbytes() / 1e6)
        page = self._page(trainer, pl_module, seen, n_atoms, skipped)
        try:
            write_text(self.path, render(page))
        except OSError as error:
            log.warning("The page %s could not be written (%s): the run goes on.", self.path, error)
            return
        prefix = getattr(trainer, "prefix", "")  # of one dictionary of several
        log_page(trainer.loggers, self.path, trainer.global_step, prefix)

    def _page(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        seen: Observed,
        n_atoms: int,
        skipped: int,
    ) -> FactorsPage:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        table = code_table(seen, n_atoms, getattr(data, "layers", ()))
        top = min(self.top, max(1, int(table.rows_per_layer.max(initial=0)) // TAIL))
        scores = importance(table, top)
        varied = variety(table, scores.peak, self.top)
        documents = getattr(getattr(data, "store", None), "document_ids", ())
        surveyor = Surveyor(table, scores, varied, data, self.survey, documents)
        best = best_by_peak(scores, varied, self.per_layer)
        figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
        groups = tuple(
            Group(
                layer=int(layer),
                count=int((scores.peak == place).sum()),
                fvu=figures.get(f"val/fvu_layer_{layer}"),
                factors=surveyor.factors(best[place]),
            )
            for place, layer in enumerate(table.layers)
        )
        return FactorsPage(
            title=_name(data, "transformer") or type(pl_module).__name__,
            facts=_facts(trainer, pl_module, table, figures),
            groups=groups,
            sample=surveyor.factors(self._sample(n_atoms)),
            n_atoms=n_atoms,
            n_silent=int((scores.peak < 0).sum()),
            top=top,
            notes=_notes(scores, self.max_codes, skipped),
        )

    def _sample(self, n_atoms: int) -> list[int]:
        order = torch.randperm(n_atoms, generator=generator(self.seed, "gallery"))
        chosen: list[int] = order[: self.sample].sort().values.tolist()
        return chosen


def _file_name(key: str, value: object) -> str:
    name = str(value)
    if Path(name).name != name or not name.endswith(".html") or not name.isprintable():
        raise InputError(f"{key}={name} must be a plain file name that ends in .html.")
    return name


def observe(codes: Codes, batch: Any) -> Observed:
    """Return the positive, finite codes of a batch as compact arrays on the CPU.

    Args:
        codes: of the `n` rows of the batch, dense or k-sparse.
        batch: `HiddenStates` or anything with layer, token, document, position `[n]`.
    """
    values = codes.values.detach()
    place = ((values > 0) & torch.isfinite(values)).nonzero()
    row, column = place[:, 0], place[:, 1]
    atom = column if codes.indices is None else codes.indices[row, column]
    return Observed(
        layer=batch.layer.cpu().numpy().astype(np.int16),
        token=batch.token.cpu().numpy().astype(np.int32),
        document=batch.document.cpu().numpy().astype(np.int32),
        position=batch.position.cpu().numpy().astype(np.int32),
        row=row.to(torch.int32).cpu().numpy(),
        atom=atom.to(torch.int32).cpu().numpy(),
        value=values[row, column].float().cpu().numpy(),
    )


def _gather(
    seen: Observed, skipped: int, n_atoms: int, group: Any
) -> tuple[list[Observed], int, int]:
    """Return the parts of all processes on process 0, in the order of the ranks."""
    world = processes.world_size()
    if world == 1:
        return [seen], skipped, n_atoms
    everyone: list[Any] | None = [None] * world if processes.rank() == 0 else None
    torch.distributed.gather_object((seen, skipped, n_atoms), everyone, dst=0, group=group)
    if everyone is None:
        return [], skipped, n_atoms
    return (
        [one[0] for one in everyone],
        sum(one[1] for one in everyone),
        max(one[2] for one in everyone),
    )


def _name(data: object, part: str) -> str:
    return str(getattr(getattr(data, part, None), "name", ""))


def _facts(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    table: CodeTable,
    figures: dict[str, float],
) -> tuple[tuple[str, str | float], ...]:
    facts: list[tuple[str, str | float]] = [("step", trainer.global_step)]
    vectors = getattr(pl_module, "vectors_seen", None)
    if isinstance(vectors, int):
        facts.append(("vectors seen", vectors))
    names = {"val/fvu": "held-out FVU", "val/l0": "held-out L0"}
    facts += [(label, figures[key]) for key, label in names.items() if key in figures]
    dead = figures.get("val/dead_fraction", math.nan)
    if math.isfinite(dead):
        facts.append(("dead atoms", f"{100 * dead:.1f}%"))
    facts.append(("layers", ", ".join(map(str, table.layers.tolist()))))
    facts.append(("held-out vectors", len(table.key)))
    if _name(data := trainer.datamodule, "text"):  # type: ignore[attr-defined]
        facts.append(("text", _name(data, "text")))
    return tuple(facts)


def _notes(scores: Importance, max_codes: int, skipped: int) -> tuple[str, ...]:
    notes = []
    if skipped:
        notes.append(
            f"The codes are dense: after {max_codes:,} positive codes per process the other "
            f"{skipped:,} held-out vectors were left out of this page "
            "(callbacks.gallery.max_codes)."
        )
    if not (scores.peak >= 0).any():
        notes.append("No atom fired on the held-out text.")
    return tuple(notes)
