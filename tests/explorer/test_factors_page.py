from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from dictlearn.analysis.findings import Context, Factor, LayerView, Word
from dictlearn.explorer.factors_page import FactorsPage, Group, number, percent, render

NASTY = (
    "<script>window.p=1</script>",
    "</style><img src=x onerror=window.p=1>",
    "</title>",
    '" onmouseover="window.p=1',
    "' style='x",
    "&amp;",
    "-->",
    "<!--",
    "🙂",
    "שלום",
    "\\u2028",
    "javascript:window.p=1",
    "https://example.org/x.js",
)


def context(tokens: tuple[str, ...], target: int = 0, document: str = "notes") -> Context:
    codes = tuple(0.5 if place % 2 == 0 else 0.0 for place in range(len(tokens)))
    return Context(1.25, document, 7, tokens, target, codes)


def factor(atom: int, tokens: tuple[str, ...] = ("the", " bank", " of")) -> Factor:
    words = tuple(Word("", token, "", 3) for token in tokens)
    return Factor(
        atom=atom,
        peak=2,
        spread=1.5,
        documents=4,
        layers=(
            LayerView(0, 0.2, 0.01, words, (context(tokens),)),
            LayerView(2, 0.9, 0.02, words, (context(tokens, len(tokens) - 1),)),
            LayerView(4, 0.0, 0.0, (), ()),
        ),
    )


def silent(atom: int) -> Factor:
    empty = tuple(LayerView(layer, 0.0, 0.0, (), ()) for layer in (0, 2, 4))
    return Factor(atom, None, 0.0, 0, empty)


def page(*factors: Factor, title: str = "tiny-bert") -> FactorsPage:
    return FactorsPage(
        title=title,
        facts=(("step", 12), ("held-out FVU", 0.25), ("broken", float("nan"))),
        groups=(Group(0, 0, None, ()), Group(2, 31, 0.125, factors), Group(4, 2, None, ())),
        sample=(silent(5),),
        n_atoms=64,
        n_silent=31,
        top=50,
    )


class Reader(HTMLParser):
    """Collects elements, attributes and text the way a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.comments: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "path", "polyline", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "polyline", "circle"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_every_token_appears_as_text_and_makes_no_element_or_attribute() -> None:
    """E5 tokens of a text are HTML or scripts: shown as text, no element or attribute is made."""
    plain, nasty = Reader(render(page(factor(3)))), Reader(render(page(factor(3, NASTY))))
    assert set(nasty.tags) == set(plain.tags)
    assert {(tag, name) for tag, name, _ in nasty.attributes} == {
        (tag, name) for tag, name, _ in plain.attributes
    }
    assert nasty.open == []
    assert nasty.comments == []
    for token in NASTY:
        assert nasty.text.count(token) >= 3  # the words, and the contexts of two layers


@pytest.mark.parametrize("text", NASTY)
def test_names_of_documents_and_models_are_escaped(text: str) -> None:
    """E5 names of documents and models are HTML: shown as text."""
    one = factor(3)
    view = dataclasses.replace(one.layers[1], contexts=(context(("a",), document=text),))
    one = dataclasses.replace(one, layers=(one.layers[0], view, one.layers[2]))
    read = Reader(render(page(one, title=text)))
    assert set(read.tags) == set(Reader(render(page(factor(3)))).tags)
    assert f"Factors of {text}" in read.text
    assert ("p", "title", f"{text}, token 7") in read.attributes


def test_nothing_outside_the_file_is_asked_for() -> None:
    html = render(page(factor(3, NASTY)))
    read = Reader(html)
    links = [value for _, name, value in read.attributes if name in ("src", "href", "srcset")]
    assert links
    assert all(re.fullmatch(r"#[\w-]+", value) for value in links)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(read.tags)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policies = [value for _, name, value in read.attributes if name == "content"]
    assert any(
        value.startswith("default-src 'none'; style-src 'unsafe-inline'") for value in policies
    )
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_the_links_of_the_overview_lead_to_a_place_on_the_page() -> None:
    read = Reader(render(page(factor(3))))
    names = [value for _, name, value in read.attributes if name == "id"]
    assert len(names) == len(set(names))
    for tag, name, value in read.attributes:
        if (tag, name) == ("a", "href"):
            assert value[1:] in names


def test_target_code_words_and_shading_are_on_the_page() -> None:
    html = render(page(factor(3, ("the", " bank", " of", " it"))))
    assert '<b class="s4 t">the</b> bank <i class="s4" title="0.500">of</i> it' in html
    assert (
        '<i class="s4" title="0.500">the</i> bank <i class="s4" title="0.500">of</i></span>' in html
    )
    assert '<span> <b class="s1 t">it</b></span>' in html
    assert "1.25" in Reader(html).text
    assert "Peaks at layer 2" in Reader(html).text
    assert "held-out FVU 0.125" in Reader(html).text


def test_the_curve_tells_its_values() -> None:
    read = Reader(render(page(factor(3))))
    labels = [value for tag, name, value in read.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels == ["Importance by layer, peak at layer 2. 0: 0.200, 2: 0.900, 4: 0"]
    assert ("svg", "role", "img") in read.attributes
    assert "layer 0: 0.200" in read.text


def test_every_layer_can_be_reached_and_the_peak_is_open() -> None:
    read = Reader(render(page(factor(3))))
    assert read.tags.count("details") == 2
    assert [tag for tag, name, _ in read.attributes if name == "open"] == ["details"]
    assert "silent" in read.text


def test_atoms_that_fire_nowhere_are_said_so() -> None:
    text = Reader(render(page(factor(3)))).text
    assert "31 of them fire nowhere" in text
    assert "Fires nowhere in the held-out text." in text


def test_an_empty_page_is_a_page() -> None:
    empty = FactorsPage("x", (), (), (), n_atoms=0, n_silent=0, top=1)
    assert Reader(render(empty)).open == []


def test_there_is_no_rubbish() -> None:
    text = Reader(render(page(factor(3)))).text
    for word in ("None", "nan", "NaN", "undefined", "null", "[object", "{", "}"):
        assert word not in text


def test_the_same_page_gives_the_same_bytes() -> None:
    assert render(page(factor(3), factor(9))) == render(page(factor(3), factor(9)))


def test_right_to_left_text_runs_from_the_right() -> None:
    hebrew = render(page(factor(3, ("שלום", " עולם", " bank"))))
    assert hebrew.count('<p class="c" dir="rtl"') == 2
    assert 'dir="rtl"' not in render(page(factor(3))).split("</style>")[1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0004, "<0.001"),
        (0.0123, "0.012"),
        (1.239, "1.24"),
        (12.39, "12.4"),
        (1234.5, "1234"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_have_about_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0%"), (0.00001, "<0.01%"), (0.0012, "0.12%"), (0.5, "50%")]
)
def test_shares_are_percent(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_the_page_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, dictlearn.explorer.factors_page; "
        "assert not {'torch', 'numpy', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
