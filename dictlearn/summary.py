"""The tables a person reads in the terminal after a run and for a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table

from dictlearn.errors import InputError, whole_number
from dictlearn.variants import own_figures, place_of

if TYPE_CHECKING:
    from dictlearn.evaluation import Result


def show(run_dir: Path, figures: dict[str, float]) -> None:
    """Print the final held-out figures, per layer and in all, and where everything is."""
    console = Console(highlight=False)
    prefix, ending = "val/fvu_layer_", "/val/fvu"
    layers = sorted(int(key[len(prefix) :]) for key in figures if key.startswith(prefix))
    variants = [key.removesuffix(ending) for key in figures if key.endswith(ending)]
    if variants:
        _show_variants(console, run_dir, figures, variants)
    elif layers:
        table = Table(title="Held-out text", title_justify="left")
        for name in ("hidden state", "FVU", "L0"):
            table.add_column(name, justify="right")
        for layer in layers:
            row = (figures[f"val/fvu_layer_{layer}"], figures[f"val/l0_layer_{layer}"])
            table.add_row(str(layer), f"{row[0]:.4f}", f"{row[1]:.1f}")
        table.add_section()
        table.add_row("all", f"{figures['val/fvu']:.4f}", f"{figures['val/l0']:.1f}")
        console.print(table)
        console.print(
            f"cosine {figures['val/cosine']:.3f}, dead atoms {figures['val/dead_fraction']:.1%}",
            end="; ",
        )
    console.print(
        f"{figures['train/vectors']:,.0f} vectors, "
        f"{figures['train/vectors_per_second']:,.0f} a second, "
        f"{figures['seconds/total']:.0f} s in all"
    )
    for name, path in (
        ("run", run_dir),
        ("figures", run_dir / "metrics.json"),
        ("dictionary", run_dir / "dictionary"),
        ("factors", run_dir / "factors.html"),
    ):
        if path.exists():
            console.print(f"{name + ':':<12}{path}", soft_wrap=True, markup=False)


def _show_variants(
    console: Console, run_dir: Path, figures: dict[str, float], names: list[str]
) -> None:
    """Print the held-out figures of every dictionary of a run, and where it is."""
    table = Table(title="Held-out text", title_justify="left")
    table.add_column("variant", overflow="fold")
    for name in ("FVU", "L0", "dead"):
        table.add_column(name, justify="right")
    table.add_column("where", overflow="fold")
    for name in names:
        own = own_figures(figures, name)
        cells = (f"{own['val/fvu']:.4f}", f"{own['val/l0']:.1f}", f"{own['val/dead_fraction']:.1%}")
        table.add_row(name, *cells, str(place_of(run_dir, name).relative_to(run_dir)))
    console.print(table)


def show_frontier(result: Result) -> None:
    """Print FVU, L0, time and gap of every inference, and where page and figures are."""
    console = Console(highlight=False)
    table = Table(title="Held-out vectors, one dictionary", title_justify="left")
    table.add_column("inference")
    for name in ("L0", "FVU", "us/vector", "mean gap", "worst gap"):
        table.add_column(name, justify="right")
    method = ""
    for point in result.points:
        if method not in ("", point.method):
            table.add_section()
        method = point.method
        gaps = [f"{gap:.1e}" if gap == gap else "" for gap in (point.gap, point.worst_gap)]
        figures = (f"{point.l0:.1f}", f"{point.fvu:.4f}", f"{point.microseconds:.0f}", *gaps)
        table.add_row(method, *figures)
    console.print(table)
    for name in ("inference.json", "inference.html"):
        console.print(str(result.folder / name), soft_wrap=True, markup=False)


def show_factors(config: DictConfig, sentence: str) -> None:
    """Print, per layer and token of a sentence, the strongest factors of the dictionary in ``run``.

    Raises:
        InputError: no dictionary there, an empty text, or a layer that it was not trained on.
    """
    from dictlearn.configuration import plain
    from dictlearn.noise import quiet
    from dictlearn.storage.saved import load

    quiet()
    plain(config)
    if not sentence:
        raise InputError('text has no value: give a sentence as text="...".')
    top = whole_number("top", config.top)
    trained = load(str(config.run))
    layers = trained.layers
    if isinstance(config.layers, ListConfig):
        unknown = [layer for layer in config.layers if layer not in layers]
        if unknown:
            raise InputError(f"layers={unknown} are not of this dictionary: it has {layers}.")
        layers = tuple(config.layers)
    elif config.layers != "all":
        raise InputError(f"layers={config.layers} must be all or a list out of {layers}.")
    found = trained.encode_text(sentence)
    console = Console(highlight=False)
    for layer in layers:
        codes = found.codes[found.layers.index(layer)]
        values, atoms = codes.topk(min(top, codes.shape[-1]), dim=-1)
        table = Table(title=f"hidden state {layer}", title_justify="left", show_header=False)
        table.add_column("token", no_wrap=True)
        table.add_column("factors", overflow="fold")
        rows = zip(found.tokens, values.tolist(), atoms.tolist(), strict=True)
        for token, strengths, factors in rows:
            pairs = zip(factors, strengths, strict=True)
            cells = "  ".join(f"{atom}:{value:.2f}" for atom, value in pairs if value > 0)
            table.add_row(repr(token)[1:-1].replace("[", "\\["), cells)
        console.print(table)
