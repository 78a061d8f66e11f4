"""``dictlearn evaluate inference``: one dictionary, many ways to infer its codes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor
from yaml import YAMLError

from dictlearn.begun import config_of
from dictlearn.codes import Codes
from dictlearn.configuration import build, plain
from dictlearn.errors import InputError, choice, number, one_line, whole_number
from dictlearn.explorer.frontier_page import FrontierPage, Mark, render
from dictlearn.hidden_states import (
    CachedDataModule,
    CachedOptions,
    DataModule,
    HiddenStateDataModule,
    StreamOptions,
)
from dictlearn.hidden_states.validation import ValidationBatches
from dictlearn.inference import refit
from dictlearn.metrics.frontier import Coded, HeldOut, Point, measure
from dictlearn.noise import quiet
from dictlearn.seeding import generator
from dictlearn.storage.atomic import write_text
from dictlearn.storage.saved import load
from dictlearn.storage.trained import TrainedDictionary

log = logging.getLogger(__name__)

REFIT, SHARED = "+refit", "+shared"
COUNTED = (
    "encoder",
    "encoder+refit",
    "matching_pursuit",
    "gradient_pursuit",
    "omp",
    "exchange",
    "exchange+shared",
)
PRICED = ("working_set", "working_set+refit")
AT_A_PRICE = ("working_set", "fista", "ista", "greedy_fista")
PRICE_ROWS = 1024


class Result(NamedTuple):
    """What was measured, and where it was written.

    Attributes:
        points: one per method and L0.
        folder: holds ``inference.json`` and ``inference.html``.
    """

    points: tuple[Point, ...]
    folder: Path


def evaluate_inference(config: DictConfig) -> Result:
    """Measure FVU, L0, time and duality gap of several inferences on held-out vectors.

    Args:
        config: ``conf/evaluate.yaml``, composed.

    Raises:
        InputError: there is no run, its text is gone, or an option is wrong.
    """
    quiet()
    plain(config)
    run = Path(str(config.run))
    sparsities = _sparsities(config.l0)
    trained = load(run).to(_device(config.device))
    too_many = [k for k in sparsities if k > trained.dictionary.n_atoms]
    if too_many:
        raise InputError(f"l0={too_many} is more than the {trained.dictionary.n_atoms} atoms.")
    methods = _methods(config.methods, trained)
    tolerance = number("tolerance", config.tolerance, 0.0)
    folder = _folder(Path(config.output) if config.output else run / "evaluation")
    options = {name: {"tolerance": tolerance} for name in PRICED}
    held_out = _held_out(run, trained, whole_number("vectors", config.vectors))
    points = []
    for method in methods:
        for wanted in sparsities:
            points.append(_point(trained, method, wanted, held_out, options.get(method, {})))
            log.info("%s", _line(points[-1]))
    _write(folder, trained, points, len(held_out.x))
    return Result(tuple(points), folder)


def _folder(path: Path) -> Path:
    """Make the folder of the results, before the work is done for them."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"output={path} cannot be written to ({error.strerror}): give another folder."
        ) from None
    return path


def _sparsities(wanted: object) -> list[int]:
    listed = list(wanted) if isinstance(wanted, ListConfig) else [wanted]
    return sorted({whole_number("l0", value) for value in listed})


def _device(name: str) -> str:
    choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda, but there is no CUDA device here: leave device=auto.")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _methods(wanted: object, trained: TrainedDictionary) -> list[str]:
    if isinstance(wanted, ListConfig):
        return [str(name) for name in wanted]
    if wanted != "auto":
        return [str(wanted)]
    learned = trained.inference.learned is not None
    return [name for name in (*COUNTED, *PRICED) if learned or not name.startswith("encoder")]


def _held_out(run: Path, trained: TrainedDictionary, n: int) -> HeldOut:
    """Return held-out vectors of the text that the run was trained on, from all over it."""
    loader = _data(run, trained, n).val_dataloader()
    if not isinstance(loader, ValidationBatches):
        raise InputError(f"No text was held out in {run}: there is nothing to evaluate on.")
    batches = [*loader.some(n, generator(0, "evaluate.vectors"))]
    device = trained.atoms.device
    vectors = torch.cat([part.vectors for part in batches])[:n].float().to(device)
    layer = torch.cat([part.layer for part in batches])[:n].to(device)
    x = trained.dictionary.centre(trained.normalization(vectors, layer))
    return HeldOut(vectors, x, trained.normalization.row(layer), len(trained.layers))


def _data(run: Path, trained: TrainedDictionary, n: int) -> DataModule:
    """Return the stream of the run, with `n` held-out vectors or as many as the run had."""
    kept, path = config_of(run), run / ".hydra" / "config.yaml"
    if kept is None and not path.is_file():
        raise InputError(
            f"{run} has no .hydra/config.yaml, which says what text was held out: give the run "
            "directory as training left it."
        )
    try:
        made = kept or OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}.") from None
    if not isinstance(made, DictConfig):
        raise InputError(f"{path} is no config of a run.")
    wanted = made.hidden_states.validation_vectors or StreamOptions.validation_vectors
    made.hidden_states.validation_vectors = max(wanted, n)
    made.hidden_states.prefetch = True  # whatever a version before this one knew beside yes and no
    options = build(made.hidden_states)
    data: DataModule
    if isinstance(options, CachedOptions):
        data = CachedDataModule(options, seed=made.seed)
    else:
        data = HiddenStateDataModule(
            trained.transformer,
            build(made.text),
            options,
            seed=made.seed,
            data_dir=Path(made.data_dir),
        )
    data.device = trained.atoms.device
    data.prepare_data()
    data.setup()
    return data


def _point(
    trained: TrainedDictionary,
    method: str,
    wanted: int,
    held_out: HeldOut,
    options: dict[str, Any],
) -> Point:
    name = method.removesuffix(REFIT).removesuffix(SHARED)
    atoms = trained.dictionary.atoms
    chosen = trained
    if name != "trained":
        shared = method.endswith(SHARED) or name in AT_A_PRICE
        among: dict[str, Any] = _spread(trained, held_out) if shared else {}
        chosen = trained.with_inference(name, k=wanted, **options, **among)
    inference, prox = chosen.inference, chosen.prox

    def infer(x: Tensor, row: Tensor) -> Coded:
        solution = inference(x, atoms, prox.for_layers(row), certify=prox.convex)
        codes: Codes = solution.codes
        if method.endswith(REFIT):
            return Coded(refit(x, codes, atoms), None)
        return Coded(codes, solution.gap if prox.convex else None)

    def raw(codes: Codes, row: Tensor) -> Tensor:
        layer = trained.normalization.layers[row]
        return trained.normalization.invert(
            trained.dictionary.uncentre(trained.dictionary.decode(codes)), layer
        )

    return measure(method, wanted, held_out, infer, raw)


def _spread(trained: TrainedDictionary, held_out: HeldOut) -> dict[str, Tensor]:
    """Return some vectors of all documents, to find prices on.

    Drawn, as every so-manieth would be at the same places of its sequence.
    """
    n, device = len(held_out.x), held_out.x.device
    drawn = torch.randperm(n, generator=generator(0, "evaluate.price"))[:PRICE_ROWS].to(device)
    layer = trained.normalization.layers[held_out.row[drawn]]
    return {"sample": held_out.vectors[drawn], "layer": layer}


def _line(point: Point) -> str:
    return (
        f"{point.method}: L0 {point.l0:.1f}, FVU {point.fvu:.4f}, "
        f"{point.microseconds:.0f} microseconds a vector"
    )


def _write(
    folder: Path, trained: TrainedDictionary, points: Sequence[Point], n_vectors: int
) -> None:
    rows = [point._asdict() for point in points]
    text = json.dumps({"vectors": n_vectors, "points": list(_finite(rows))}, indent=2)
    write_text(folder / "inference.json", text + "\n")
    page = FrontierPage(
        title=trained.source,
        n_atoms=trained.dictionary.n_atoms,
        n_vectors=n_vectors,
        device=trained.atoms.device.type,
        marks=tuple(Mark(*point) for point in points),
    )
    write_text(folder / "inference.html", render(page))


def _finite(rows: Sequence[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Replace nan by None: JSON has no nan."""
    for row in rows:
        yield {key: None if value != value else value for key, value in row.items()}
