"""One self-contained HTML file: FVU against L0 and against time, for several inferences.

No script, no request; every name goes through `html.escape`; the same page gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from dictlearn.explorer.factors_page import POLICY

STYLE = Path(__file__).with_suffix(".css")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 520, 340, 52, 42, 14, 150
COLOURS = 8


class Mark(NamedTuple):
    """One inference at one sparsity; the fields of `metrics.frontier.Point`."""

    method: str
    wanted: int
    l0: float
    fvu: float
    microseconds: float
    gap: float
    worst_gap: float


@dataclass(frozen=True)
class FrontierPage:
    """Everything the page says.

    Attributes:
        title: what the dictionary is of, e.g. the name of the transformer.
        n_atoms: rows of the dictionary.
        n_vectors: held-out vectors that were coded.
        device: what coded them.
        marks: one per method and L0.
    """

    title: str
    n_atoms: int
    n_vectors: int
    device: str
    marks: tuple[Mark, ...]


def render(page: FrontierPage) -> str:
    """Return the page as one HTML document."""
    title = f"Sparse inference on {escape(page.title)}"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>",
            f"<p>One dictionary of {page.n_atoms:,} atoms, {page.n_vectors:,} held-out hidden "
            "states, and several ways to infer their codes. FVU is the share of the variance that "
            "the reconstruction misses; L0 the number of active atoms of a vector. Lower and "
            "further left is better.</p>",
            '<div class="f">',
            _figure(page.marks, "l0", "active atoms of a vector (L0)", "The frontier."),
            _figure(
                page.marks,
                "microseconds",
                f"microseconds a vector ({escape(page.device)})",
                "What it costs: every point is one L0.",
            ),
            "</div>",
            _table(page.marks),
            '<p class="m">The gap is the relative duality gap: no priced code is further from the '
            "optimum than that. Counted codes (a fixed number of atoms) have no such certificate. "
            "Times are wall time in batches of 1,024 vectors on a machine that may have been "
            "busy.</p>",
            "</body>\n</html>\n",
        ]
    )


class _Axis(NamedTuple):
    """A logarithmic axis from `low` to `high` in data, `start` to `end` in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round numbers within the axis: 1, 2 and 5 times powers of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        candidates = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [value for value in candidates if self.low <= value <= self.high]


def _axis(values: Iterable[float], start: float, end: float) -> _Axis:
    listed = list(values)
    return _Axis(min(listed) / 1.15, max(listed) * 1.15, start, end)


def _drawable(mark: Mark, field: str) -> bool:
    across = getattr(mark, field)
    return math.isfinite(across) and across > 0 and math.isfinite(mark.fvu) and mark.fvu > 0


def _figure(marks: Sequence[Mark], field: str, label: str, caption: str) -> str:
    shown = [mark for mark in marks if _drawable(mark, field)]
    if not shown:
        return ""
    x = _axis((getattr(mark, field) for mark in shown), LEFT, WIDTH - RIGHT)
    y = _axis((mark.fvu for mark in shown), HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x, y, label)]
    ends: list[tuple[float, str, int]] = []
    for number, (method, points) in enumerate(_by_method(marks)):
        places = [(x(getattr(p, field)), y(p.fvu), p) for p in points if _drawable(p, field)]
        if not places:
            continue
        line = " ".join(f"{across:.1f},{up:.1f}" for across, up, _ in places)
        dots = "".join(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3.2"><title>{escape(method)}: L0 '
            f"{point.l0:.1f}, FVU {point.fvu:.4f}</title></circle>"
            for across, up, point in places
        )
        parts.append(f'<g class="c{number % COLOURS}"><polyline points="{line}"/>{dots}</g>')
        ends.append((places[-1][1], method, number))
    parts += _names(ends)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="FVU against {label}">{"".join(parts)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _by_method(marks: Sequence[Mark]) -> list[tuple[str, list[Mark]]]:
    return [(name, list(group)) for name, group in groupby(marks, lambda mark: mark.method)]


def _grid(x: _Axis, y: _Axis, label: str) -> Iterable[str]:
    for value in x.ticks():
        at = x(value)
        yield f'<path class="g" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield (
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    for value in y.ticks():
        at = y(value)
        yield f'<path class="g" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{label}'
    yield f'</text><text x="6" y="{TOP + 4}" class="n">FVU</text>'


def _names(ends: Sequence[tuple[float, str, int]]) -> Iterable[str]:
    """Yield the methods' names beside the last points, moved apart where they would overlap."""
    below = 0.0
    for up, method, number in sorted(ends):
        at = max(up + 4, below + 15)
        below = at
        yield (
            f'<text class="k n c{number % COLOURS}" x="{WIDTH - RIGHT + 8}" y="{at:.1f}">'
            f"{escape(method)}</text>"
        )


def _table(marks: Sequence[Mark]) -> str:
    best: dict[int, float] = {}
    for mark in marks:
        best[mark.wanted] = min(mark.fvu, best.get(mark.wanted, math.inf))
    head = "<tr><th>inference</th><th>L0 asked</th><th>L0</th><th>FVU</th>"
    head += "<th>µs a vector</th><th>mean gap</th><th>worst gap</th></tr>"
    rows = "".join(_row(mark, mark.fvu == best[mark.wanted]) for mark in marks)
    return f'<div class="t"><table>{head}{rows}</table></div>'


def _row(mark: Mark, best: bool) -> str:
    strong = ' class="b"' if best else ""
    return (
        f"<tr><td>{escape(mark.method)}</td><td>{mark.wanted}</td><td>{mark.l0:.1f}</td>"
        f"<td{strong}>{mark.fvu:.4f}</td><td>{mark.microseconds:.0f}</td>"
        f"<td>{_gap(mark.gap)}</td><td>{_gap(mark.worst_gap)}</td></tr>"
    )


def _gap(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else ""
