"""One self-contained HTML file with the factors of a dictionary and where in the text they fire.

No script, no request: the style is inline and a content security policy forbids the rest. Every
piece of text goes through `html.escape`; the same page gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from unicodedata import bidirectional

from dictlearn.analysis.findings import Context, Factor, LayerView, Word

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SHADES = 8
STYLE = Path(__file__).with_suffix(".css")


@dataclass(frozen=True)
class Group:
    """The factors whose importance peaks at one layer.

    Attributes:
        layer: index of the hidden state.
        count: how many atoms of the dictionary peak there.
        fvu: held-out FVU of the layer; None where it is not known.
        factors: those that are shown, the most telling ones first.
    """

    layer: int
    count: int
    fvu: float | None
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class FactorsPage:
    """Everything the page says.

    Attributes:
        title: what the factors are of, e.g. the name of the transformer.
        facts: (name, value) pairs for the top of the page; numbers are formatted here, and a
            number that is not finite is left out.
        groups: one per layer, lowest first.
        sample: atoms drawn at random.
        n_atoms: rows of the dictionary.
        n_silent: atoms that fire nowhere in the text.
        top: number of codes in the importance score.
        notes: sentences about limits of this page.
    """

    title: str
    facts: tuple[tuple[str, str | float], ...]
    groups: tuple[Group, ...]
    sample: tuple[Factor, ...]
    n_atoms: int
    n_silent: int
    top: int
    notes: tuple[str, ...] = ()


def render(page: FactorsPage) -> str:
    """Return the page as one HTML document."""
    title = f"Factors of {escape(page.title)}"
    shown = [group for group in page.groups if group.factors]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            _header(title, page),
            "<main>",
            *map(_group, shown),
            _sample(page.sample),
            "</main>\n</body>\n</html>\n",
        ]
    )


def number(value: float) -> str:
    """Return a number with about three digits, never in powers of ten."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:.0f}"
    if size < 0.001:
        return "<0.001" if value > 0 else ">-0.001"
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def percent(share: float) -> str:
    """Return a share as percent with two digits."""
    value = 100 * share
    if 0 < value < 0.01:
        return "<0.01%"
    return f"{value:.{0 if value >= 10 or value == 0 else 1 if value >= 1 else 2}f}%"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _header(title: str, page: FactorsPage) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_fact(value))}</dd></div>"
        for name, value in page.facts
        if isinstance(value, str | int) or math.isfinite(value)
    )
    notes = "".join(f'<p class="m">{escape(note)}</p>' for note in page.notes)
    return (
        f"<header>\n<h1>{title}</h1>\n<dl>{facts}</dl>\n"
        "<p>A factor is an atom of the dictionary: one direction that the hidden states of all "
        "layers share. Every line below is a place in held-out text where a factor is strong: "
        'first its code there, then the words around the <b class="t">token</b> it was '
        'measured at, <i class="s6">shaded</i> where the same factor is active at the same '
        "layer.</p>\n"
        '<p class="m">The curve of a factor is its importance score, the mean of its '
        f"{_largest(page)} at each layer (Yun et al. 2021); the dot is the peak. Open a layer to "
        f"see the factor there.</p>\n{notes}{_overview(page)}</header>"
    )


def _largest(page: FactorsPage) -> str:
    return "largest code" if page.top == 1 else f"{page.top} largest codes"


def _fact(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else number(value)


def _overview(page: FactorsPage) -> str:
    """Return how many atoms peak at every layer, as a bar chart that leads to the groups."""
    largest = max((group.count for group in page.groups), default=0)
    bars = []
    for group in page.groups:
        width = 100 * group.count / largest if largest else 0.0
        label = f"layer {group.layer}"
        if group.factors:
            label = f'<a href="#layer-{group.layer}">{label}</a>'
        bars.append(
            f'<li>{label} <i style="--w:{width:.1f}%"></i> <span>{group.count:,}</span></li>'
        )
    silent = f" {page.n_silent:,} of them fire nowhere in the held-out text." * (page.n_silent > 0)
    sample = ' <a href="#sample">Random sample</a>' * bool(page.sample)
    return (
        f'<nav aria-label="Layers"><p class="m">Where the {page.n_atoms:,} atoms peak.{silent}'
        f'{sample}</p><ol class="o">{"".join(bars)}</ol></nav>\n'
    )


def _group(group: Group) -> str:
    where = " (embeddings)" if group.layer == 0 else ""
    facts = [_plural(group.count, "atom")]
    if group.fvu is not None and math.isfinite(group.fvu):
        facts.append(f"held-out FVU {number(group.fvu)}")
    if group.count > len(group.factors):
        facts.append(f"the {len(group.factors)} most telling")
    cards = "\n".join(_card(factor, anchor=True) for factor in group.factors)
    return (
        f'<section id="layer-{group.layer}">\n<h2>Peaks at layer {group.layer}{where} '
        f"<small>{' · '.join(facts)}</small></h2>\n{cards}\n</section>"
    )


def _sample(factors: Sequence[Factor]) -> str:
    if not factors:
        return ""
    cards = "\n".join(_card(factor, anchor=False) for factor in factors)
    return (
        '<section id="sample">\n<h2>Random sample <small>not chosen: what an average factor '
        f"looks like; the same atoms at every validation</small></h2>\n{cards}\n</section>"
    )


def _card(factor: Factor, *, anchor: bool) -> str:
    name = f' id="f{factor.atom}"' if anchor else ""
    head = f"<article{name}>\n<div><h3>#{factor.atom}</h3>"
    peak = next((view for view in factor.layers if view.layer == factor.peak), None)
    if peak is None:
        return f'{head}</div><p class="m">Fires nowhere in the held-out text.</p>\n</article>'
    facts = [
        f"peak at layer {peak.layer}",
        f"spread over {factor.spread:.1f} of {_plural(len(factor.layers), 'layer')}",
        f"fires on {percent(peak.firing)} of the tokens",
        f"strongest codes in {_plural(factor.documents, 'document')}",
    ]
    listed = "".join(f"<li>{fact}</li>" for fact in facts)
    views = "\n".join(
        _layer(view, peak.importance, view is peak, _top_code(factor)) for view in factor.layers
    )
    return (
        f'{head}{_curve(factor)}<ul class="m">{listed}</ul></div>\n<div>'
        f'<p class="w">{_words(peak.words, counted=True)}</p>\n{views}</div>\n</article>'
    )


def _top_code(factor: Factor) -> float:
    return max((c.code for view in factor.layers for c in view.contexts), default=1.0)


def _curve(factor: Factor) -> str:
    """Return the importance over layers as an SVG with values to hover over."""
    width, height, left, right, top, base = 232, 84, 12, 12, 16, 64
    views = factor.layers
    largest = max(view.importance for view in views)
    step = (width - left - right) / max(len(views) - 1, 1)
    points = [
        (left + step * place, base - (base - top) * view.importance / largest)
        for place, view in enumerate(views)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots, labels = [], []
    every = math.ceil(len(views) / 13)
    for place, (view, (x, y)) in enumerate(zip(views, points, strict=True)):
        peak = view.layer == factor.peak
        mark = ' class="p"' if peak else ""
        dots.append(
            f'<circle{mark} cx="{x:.1f}" cy="{y:.1f}" r="{4 if peak else 2.5}">'
            f"<title>layer {view.layer}: {number(view.importance)}</title></circle>"
        )
        if place % every == 0 or peak:
            labels.append(f'<text x="{x:.1f}" y="80">{view.layer}</text>')
        if peak:
            middle = min(max(x, left + 8), width - right - 8)  # the number stays inside
            labels.append(
                f'<text x="{middle:.1f}" y="{y - 7:.1f}">{number(view.importance)}</text>'
            )
    said = ", ".join(f"{view.layer}: {number(view.importance)}" for view in views)
    return (
        f'<svg role="img" aria-label="Importance by layer, peak at layer {factor.peak}. {said}" '
        f'viewBox="0 0 {width} {height}"><path d="M4 {base}H{width - 4}"/>'
        f'<polyline points="{path}"/>{"".join(dots)}{"".join(labels)}</svg>'
    )


def _words(words: Iterable[Word], *, counted: bool) -> str:
    parts = []
    for word in words:
        piece = escape(word.piece)
        if word.before or word.after:
            piece = f"{escape(word.before)}<b>{piece}</b>{escape(word.after)}"
        count = f"<small>{word.count}</small>" if counted else ""
        parts.append(f"<bdi>{piece}</bdi>{count}")
    return " ".join(parts) if counted else " · ".join(parts)


def _layer(view: LayerView, peak: float, is_peak: bool, top_code: float) -> str:
    share = 100 * view.importance / peak
    head = (
        f"<b>layer {view.layer}</b>"
        f'<i style="--w:{share:.1f}%"></i>'
        f"<span>{number(view.importance)}</span>"
    )
    if not view.contexts:
        return f'<p class="l none">{head}<span>silent</span></p>'
    words = "" if is_peak else f"<span>{_words(view.words[:5], counted=False)}</span>"
    lines = "\n".join(_context(context, top_code) for context in view.contexts)
    return (
        f'<details{" open" * is_peak}><summary class="l">{head}{words}</summary>\n{lines}</details>'
    )


def _context(context: Context, top_code: float) -> str:
    tokens = [
        _token(text, code, top_code, place == context.target)
        for place, (text, code) in enumerate(zip(context.tokens, context.codes, strict=True))
    ]
    before, after = "".join(tokens[: context.target]), "".join(tokens[context.target :])
    rtl = ' dir="rtl"' if _is_right_to_left("".join(context.tokens)) else ""
    place = escape(f"{context.document}, token {context.position}")
    return (
        f'<p class="c"{rtl} title="{place}"><span>{number(context.code)}</span>'
        f"<span><span>{before}</span></span><span>{after}</span></p>"
    )


def _token(text: str, code: float, top_code: float, is_target: bool) -> str:
    space = " " if text.startswith(" ") else ""
    shown = escape(text[len(space) :])
    if not is_target and code <= 0:
        return space + shown
    level = min(SHADES, max(1, math.ceil(SHADES * code / top_code)))
    if is_target:  # its code stands at the start of the line
        return f'{space}<b class="s{level} t">{shown}</b>'
    return f'{space}<i class="s{level}" title="{number(code)}">{shown}</i>'


def _is_right_to_left(text: str) -> bool:
    strong = [bidirectional(character) for character in text]
    return sum(kind in ("R", "AL") for kind in strong) > strong.count("L")
