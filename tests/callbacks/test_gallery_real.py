"""The gallery on hidden states of the embedded transformer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dictlearn.codes import Codes
from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates, StreamOptions
from dictlearn.text import LocalText
from dictlearn.transformer import FrozenTransformer
from tests.callbacks.small_text import gallery, trainer
from tests.explorer.test_factors_page import Reader

N_ATOMS = 300


class Nearest(pl.LightningModule):
    """A dictionary of hidden states met first; the code is the four largest projections."""

    atoms: torch.Tensor | None = None

    def validation_step(self, batch: HiddenStates, batch_idx: int) -> dict[str, Any]:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        x = data.normalization(batch.vectors, batch.layer)
        if self.atoms is None:
            self.atoms = torch.nn.functional.normalize(x[:N_ATOMS], dim=-1)
        kept = (x @ self.atoms.T).topk(4)
        return {"codes": Codes(kept.values, kept.indices, len(self.atoms))}


@pytest.fixture(scope="module")
def data(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> HiddenStateDataModule:
    options = StreamOptions(
        layers=(0, 3, 6),
        batch_size=512,
        validation_vectors=6000,
        statistics_tokens=1000,
        prefetch=False,
    )
    text = LocalText(str(text_folder), validation_fraction=0.3)
    folder = tmp_path_factory.mktemp("data")
    return HiddenStateDataModule(FrozenTransformer(), text, options, data_dir=folder)


def test_real_factors_fire_on_the_words_that_are_marked(
    data: HiddenStateDataModule, tmp_path: Path
) -> None:
    trainer(gallery(tmp_path, per_layer=6)).validate(Nearest(), datamodule=data, verbose=False)
    html = (tmp_path / "factors.html").read_text(encoding="utf-8")
    read = Reader(html)
    assert read.open == []
    assert "Peaks at layer 0 (embeddings)" in read.text
    assert "Random sample" in read.text
    assert "topics" not in read.text
    assert len(re.findall(r'<p class="c"', html)) > 50
    assert len(html) < 400_000
    # the embedding layer knows little but the token: its best factors are about one word each
    section = html.split('<section id="layer-0">')[1].split("</section>")[0]
    counts = re.findall(r'<p class="w">.*?<small>(\d+)</small>', section)
    assert counts
    assert max(map(int, counts)) >= 10
