"""What is wrong with some hidden states takes nothing from what is learned of the others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.hidden_states.extraction import Extractor
from dictlearn.transformer import FrozenTransformer
from tests.small_run import small_data, small_learner, small_trainer

STEPS, BATCH, THE = 8, 128, 1996


class Spoilt(FrozenTransformer):
    """Gives one number of every "the" in layer 3 that is not finite, or absurd."""

    value = math.nan

    def hidden_states(self, ids: Tensor, mask: Tensor, layers: Any) -> Tensor:
        found = super().hidden_states(ids, mask, layers)
        found[list(layers).index(3), ids == THE, 17] = self.value
        return found


class Kept(pl.Callback):
    """Keeps what was learned, also by processes that are gone afterwards."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(dict(module.named_parameters()), self.file)


def learned(
    model: Path, text: Path, place: Path, spoilt: bool, processes: int = 1
) -> dict[str, Tensor]:
    """The parameters after a run on this text."""
    options: dict[str, Any] = {"max_non_finite": 10**6, "normalization": "none"}
    data = small_data(model, text, place, batch_size=BATCH // processes, **options)
    data.max_vectors = STEPS * BATCH
    data.transformer = (Spoilt if spoilt else FrozenTransformer)(str(model), dtype="float32")
    strategy = "ddp_fork" if processes > 1 else "auto"
    trainer = small_trainer(
        place, [Kept(place / "learned.pt")], devices=processes, strategy=strategy
    )
    trainer.fit(small_learner(data), datamodule=data)
    found: dict[str, Tensor] = torch.load(place / "learned.pt", weights_only=True)
    return found


def learned_without(model: Path, text: Path, place: Path, processes: int = 1) -> dict[str, Tensor]:
    """What is learned where nothing is wrong, and no "the" is asked for."""
    made = Extractor.__init__

    def init(self: Extractor, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        self._weights[THE] = 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, "__init__", init)
        return learned(model, text, place, False, processes)


@pytest.fixture(scope="module")
def without(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    return learned_without(minilm_folder, text_folder, tmp_path_factory.mktemp("without"))


def check_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, entry in found.items():
        assert torch.equal(entry, wanted[name]), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
def test_what_is_not_finite_or_absurd_changes_nothing_else(
    value: float,
    without: dict[str, Tensor],
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B1 NaN, infinity or 1e25 in a hidden state: what is learned is bit-equal to a run without
    these tokens.
    """
    monkeypatch.setattr(Spoilt, "value", value)
    check_equal(learned(minilm_folder, text_folder, tmp_path, True), without)


def test_what_is_not_finite_changes_nothing_else_on_two_processes(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B1 NaN in hidden states of two processes: what is learned is bit-equal to a run without
    these tokens.
    """
    found = learned(minilm_folder, text_folder, tmp_path, True, processes=2)
    check_equal(found, learned_without(minilm_folder, text_folder, tmp_path, processes=2))
