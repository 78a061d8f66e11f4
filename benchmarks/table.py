"""How the benchmarks print: one table with machine, date and versions, and one flat JSON object."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

Cell = str | float | int | None


class Table:
    """Rows of a Markdown table that are printed when they are all there.

    Args:
        title: its heading.
        columns: their names.
    """

    def __init__(self, title: str, columns: list[str]) -> None:
        self.title, self.columns = title, columns
        self.rows: list[list[str]] = []

    def row(self, *cells: Cell) -> None:
        """Add a row; None is shown as a dash."""
        assert len(cells) == len(self.columns), (cells, self.columns)
        self.rows.append([shown(cell) for cell in cells])

    def text(self) -> str:
        """Return it as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        lines[1] = ["-" * width for width in widths]
        padded = (
            " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )
        return "\n".join([f"### {self.title}", "", *(f"| {line} |" for line in padded), ""])

    def print(self) -> None:
        """Print it."""
        print(self.text(), flush=True)


def shown(cell: Cell) -> str:
    """Return a cell's text: three to four digits of a number, a dash for None."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if cell == 0 or 0.01 <= abs(cell) < 100:
        return f"{cell:.4f}" if abs(cell) < 1 else f"{cell:.2f}"
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.1e}"


def ratio(cell: float | None, bar: float, *, at_most: bool) -> str:
    """Return a ratio beside its bar, and whether it is met."""
    if cell is None:
        return "-"
    met = cell <= bar if at_most else cell >= bar
    digits, side = (3 if abs(cell) < 10 else 1), "<=" if at_most else ">="
    return f"{cell:.{digits}f} (bar {side} {round(bar, 3):g}: {'met' if met else 'NOT met'})"


def machine(device: str, threads: int) -> str:
    """Return the sentence that says when, where and with what a table was made."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    today = datetime.date.today().isoformat()
    precision = torch.get_float32_matmul_precision()
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", "numba"))
    return (
        f"{today}; {name}; Python {platform.python_version()}, {versions}; {threads} thread(s) and "
        f"float32_matmul_precision={precision} for both sides (a float32 product errs by "
        f"{product_error(device):.0e})."
    )


def product_error(device: str) -> float:
    """Return the relative error of a float32 product: 1e-7 to 1e-6, or 1e-3 where it is bf16."""
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, 384, generator=draws).to(device) for size in (256, 512))
    exact = a.double() @ b.double().T
    return float((exact - (a @ b.T).double()).norm() / exact.norm())


def write_json(path: Path | None, figures: Mapping[str, Cell]) -> None:
    """Write the figures as one flat object, if a file is wanted."""
    if path is not None:
        path.write_text(json.dumps(dict(figures), indent=2) + "\n")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if _has_cpuinfo() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _has_cpuinfo() -> bool:
    return Path("/proc/cpuinfo").exists()
