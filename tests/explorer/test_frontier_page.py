from __future__ import annotations

import re
from html.parser import HTMLParser

from dictlearn.explorer.frontier_page import FrontierPage, Mark, render

NAN = float("nan")


def page(*marks: Mark) -> FrontierPage:
    return FrontierPage("tiny-bert", 3072, 4096, "cpu", marks)


def two_methods() -> tuple[Mark, ...]:
    return (
        Mark("omp", 8, 8.0, 0.25, 90.0, NAN, NAN),
        Mark("omp", 32, 32.0, 0.10, 110.0, NAN, NAN),
        Mark("working_set", 8, 8.1, 0.35, 80.0, 3e-6, 9e-5),
        Mark("working_set", 32, 31.9, 0.15, 95.0, 4e-6, 8e-5),
    )


def test_every_point_is_drawn_in_both_figures_and_listed() -> None:
    text = render(page(*two_methods()))
    assert text.count("<circle") == 8
    assert text.count("<polyline") == 4
    rows = re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td><td>([\d.]+)</td>", text)
    assert rows == [
        ("omp", "8", "8.0"),
        ("omp", "32", "32.0"),
        ("working_set", "8", "8.1"),
        ("working_set", "32", "31.9"),
    ]
    assert "9.0e-05" in text
    assert "nan" not in text


def test_the_best_fvu_at_every_l0_is_marked() -> None:
    text = render(page(*two_methods()))
    assert re.findall(r'<td class="b">([\d.]+)</td>', text) == ["0.2500", "0.1000"]


def test_lower_error_is_drawn_lower_and_more_atoms_further_right() -> None:
    text = render(page(*two_methods()))
    points = re.search(r'<polyline points="([^"]+)"', text)
    assert points is not None
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in points.group(1).split())
    assert x1 > x0
    assert y1 > y0  # the drawing's y grows downwards


def test_names_are_escaped_and_nothing_is_fetched_or_run() -> None:
    """E5 names of methods are scripts: shown as text."""
    marks = (Mark("<script>x</script>", 8, 8.0, 0.2, 10.0, NAN, NAN),)
    text = render(FrontierPage("</title><img src=x>", 8, 8, "cpu", marks))
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Tags().feed(text)
    assert "script" not in tags
    assert "img" not in tags
    assert "http" not in text.replace("http-equiv", "")


def test_points_that_cannot_be_drawn_are_still_listed() -> None:
    marks = (
        Mark("omp", 8, 0.0, 1.0, 10.0, NAN, NAN),
        Mark("omp", 16, 16.0, NAN, 10.0, NAN, NAN),
    )
    text = render(page(*marks))
    assert text.count("<td>omp</td>") == 2
    assert text.count("<circle") == 1  # against time; an L0 of zero has no logarithm
