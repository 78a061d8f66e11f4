from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from dictlearn.callbacks.gallery import FactorGallery, observe
from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.loggers import report
from dictlearn.loggers.weights_and_biases import WandbRunLogger
from tests.callbacks.small_text import (
    LAYERS,
    N_ATOMS,
    WORDS,
    Planted,
    Rows,
    SmallText,
    gallery,
    trainer,
)
from tests.explorer.test_factors_page import Reader

ROOT = Path(__file__).parents[2]


def validate(run_dir: Path, model: pl.LightningModule | None = None, **options: Any) -> str:
    made = trainer(gallery(run_dir, **options))
    made.validate(model or Planted(), datamodule=SmallText(), verbose=False)
    return (run_dir / "factors.html").read_text(encoding="utf-8")


def card(html: str, atom: int) -> str:
    return html.split(f'<article id="f{atom}">')[1].split("</article>")[0]


def test_a_planted_factor_is_seen_on_its_word_with_its_strongest_codes(tmp_path: Path) -> None:
    html = validate(tmp_path)
    atom = WORDS.index("river")
    assert int((SmallText().words == atom).sum()) > 10
    at_layer_0 = card(html, atom).split("<b>layer 0</b>")[1].split("<details")[0]
    assert re.findall(r'<b class="s\d t">([^<]*)</b>', at_layer_0) == ["river"] * 5
    codes = [float(code) for code in re.findall(r"<span>([\d.]+)</span><span>", at_layer_0)]
    assert codes == sorted(codes, reverse=True)
    places = (SmallText().words == atom).nonzero()
    strongest = max(1 + 0.01 * int(p) + 0.1 * int(d) for d, p in places)
    assert codes[0] == pytest.approx(strongest, abs=0.005)


def test_tokens_are_shaded_where_the_factor_fires_also_at_the_edge_of_a_document(
    tmp_path: Path,
) -> None:
    html = validate(tmp_path, contexts=30, window=6)
    n_shaded = n_at_edge = 0
    for atom, word in enumerate(WORDS):
        at_layer_0 = card(html, atom).split("<b>layer 0</b>")[1].split("<details")[0]
        n_at_edge += len(re.findall(r"token [0-5]\"", at_layer_0))
        shaded = re.findall(r'<i class="s\d" title="[\d.]+">([^<]*)</i>', at_layer_0)
        assert set(map(unescape, shaded)) <= {word}
        n_shaded += len(shaded)
    assert n_shaded > 20
    assert n_at_edge > 5


def test_the_factor_of_a_layer_shows_what_comes_after_its_word(tmp_path: Path) -> None:
    html = validate(tmp_path)
    at_layer_3 = card(html, WORDS.index("river")).split("<b>layer 3</b>")[1].split("<details")[0]
    lines = re.findall(r'<p class="c".*?</p>', at_layer_3)
    assert lines
    for line in lines:
        before = re.sub("<[^>]*>", "", line.split('<b class="')[0])
        assert before.split()[-1] == "river"


def test_the_top_of_the_page_says_what_it_is(tmp_path: Path) -> None:
    text = Reader(validate(tmp_path)).text
    for part in (
        "Factors of tiny <bert>",
        "vectors seen4,096",
        "held-out FVU0.250",
        "held-out vectors480",
        "layers0, 3",
        f"Where the {N_ATOMS} atoms peak. 2 of them fire nowhere",
    ):
        assert part in text


def test_words_of_the_text_make_no_element(tmp_path: Path) -> None:
    """E5 words of the training text are HTML: they make no element of the factor page."""
    read = Reader(validate(tmp_path))
    assert "script" not in read.tags
    assert "<script>" in read.text
    for rubbish in ("None", "nan", "undefined"):
        assert rubbish not in read.text


def test_dense_and_sparse_codes_give_the_same_bytes(tmp_path: Path) -> None:
    dense = validate(tmp_path / "dense", Planted("dense"))
    assert dense == validate(tmp_path / "sparse", Planted("sparse"))
    assert dense == validate(tmp_path / "again", Planted("dense"))


def test_the_random_sample_is_fixed_by_the_seed(tmp_path: Path) -> None:
    def sample(html: str) -> list[str]:
        return re.findall(r"<h3>(#\d+)</h3>", html.split('<section id="sample">')[1])

    first = sample(validate(tmp_path, seed=1))
    assert len(first) == 4
    assert first == sample(validate(tmp_path, Planted(loudness=0.3), seed=1))
    assert first != sample(validate(tmp_path, seed=2))


def test_silence_is_said_so(tmp_path: Path) -> None:
    text = Reader(validate(tmp_path, Planted(loudness=0.0))).text
    assert "No atom fired on the held-out text." in text
    assert text.count("Fires nowhere in the held-out text.") == 4


class Watcher(pl.Callback):
    """Notes after every validation whether there is a page and for which step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[str] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.path.exists():
            self.steps.append("no page")
            return
        html = self.path.read_text(encoding="utf-8")
        self.steps += re.findall(r"<dt>step</dt><dd>(\d+)</dd>", html)


def test_the_page_is_written_at_each_validation_but_not_at_the_sanity_check(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "factors.html")
    made = trainer(gallery(tmp_path), watcher, max_epochs=2, num_sanity_val_steps=1)
    made.fit(Planted(), datamodule=SmallText())
    assert watcher.steps == ["no page", "2", "4"]


class NoText(SmallText):
    def val_dataloader(self) -> list[Rows]:
        return []


def test_no_validation_text_means_no_page(tmp_path: Path) -> None:
    made = trainer(gallery(tmp_path), max_epochs=1)
    made.fit(Planted(), datamodule=NoText())
    assert list(tmp_path.iterdir()) == []


def test_more_codes_than_allowed_leave_a_note(tmp_path: Path) -> None:
    text = Reader(validate(tmp_path, max_codes=100)).text
    assert "after 100 positive codes per process the other 380 held-out vectors" in text
    assert "held-out vectors100" in text


class NoCodes(Planted):
    def validation_step(self, batch: Rows, batch_idx: int) -> dict[str, Any]:
        return {}


def test_a_module_that_keeps_its_codes_to_itself_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\{'codes': Codes\}"):
        validate(tmp_path, NoCodes())


def test_a_data_module_that_cannot_show_text_is_told(tmp_path: Path) -> None:
    batches: Any = DataLoader(list(SmallText().batches()), batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="context"):
        trainer(gallery(tmp_path)).validate(Planted(), dataloaders=batches, verbose=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("contexts", 0),
        ("top", 2.5),
        ("sample", -1),
        ("file", "../factors.html"),
        ("file", "factors.txt"),
        ("max_codes", "many"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.gallery\.{key}"):
        FactorGallery(tmp_path, **{key: value})  # type: ignore[arg-type]


def test_the_config_names_every_option_and_its_default() -> None:
    config = OmegaConf.load(ROOT / "conf/callbacks/gallery.yaml").gallery
    values = {key: config._get_node(key)._value() for key in config if key != "_target_"}
    expected = inspect.signature(FactorGallery).parameters
    assert set(values) == set(expected)
    for key, value in values.items():
        if key not in ("run_dir", "seed"):
            assert value == expected[key].default
    assert config._target_ == f"{FactorGallery.__module__}.FactorGallery"


def test_positive_finite_codes_are_kept_in_compact_columns() -> None:
    values = torch.tensor([[0.5, 0.0, float("inf")], [-1.0, 2.0, float("nan")]])
    rows = Rows(torch.zeros(2, 1), *(torch.tensor([1, 2]) for _ in range(5)))
    dense = observe(Codes.from_dense(values.bfloat16()), rows)
    assert dense.row.tolist() == [0, 1]
    assert dense.atom.tolist() == [0, 1]
    assert dense.value.tolist() == [0.5, 2.0]
    sparse = observe(Codes(values, torch.tensor([[7, 8, 9], [7, 8, 9]]), 10), rows)
    assert sparse.atom.tolist() == [7, 8]
    assert sum(column.itemsize for column in dense[4:]) == 12


def test_two_processes_write_the_page_of_one(tmp_path: Path) -> None:
    here = ["--standalone", "--local-addr=127.0.0.1"]  # no name of this host need be known
    command = ["-m", "torch.distributed.run", *here, "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [sys.executable, *command, "tests.callbacks.small_text", str(tmp_path / "two")],
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    two = (tmp_path / "two" / "factors.html").read_text(encoding="utf-8")
    assert two == validate(tmp_path / "one")


@pytest.fixture
def wandb_logger(tmp_path: Path) -> WandbRunLogger:
    return WandbRunLogger(save_dir=str(tmp_path), mode="offline")


def test_the_page_is_logged_to_wandb_as_it_is(tmp_path: Path, wandb_logger: WandbRunLogger) -> None:
    made = trainer(gallery(tmp_path), logger=wandb_logger)
    made.validate(Planted(), datamodule=SmallText(), verbose=False)
    wandb_logger.finish()
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media/html/factors*.html")
    assert media.read_bytes() == (tmp_path / "factors.html").read_bytes()


def test_a_page_too_large_for_wandb_stays_at_home(
    tmp_path: Path,
    wandb_logger: WandbRunLogger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(report, "LARGEST_PAGE", 1000)
    with caplog.at_level(logging.WARNING):
        made = trainer(gallery(tmp_path), logger=wandb_logger)
        made.validate(Planted(), datamodule=SmallText(), verbose=False)
    assert "too large for W&B" in caplog.text
    assert not list(tmp_path.glob("wandb/offline-run-*/files/media/html/*"))
    wandb_logger.finish()


def test_layers_of_the_stream_without_a_row_are_shown_too(tmp_path: Path) -> None:
    class OneMore(SmallText):
        layers = (*LAYERS, 6)  # type: ignore[assignment]

    made = trainer(gallery(tmp_path))
    made.validate(Planted(), datamodule=OneMore(), verbose=False)
    assert "layer 6" in Reader((tmp_path / "factors.html").read_text(encoding="utf-8")).text
