import random

from dictlearn.text.splitting import articles, has_articles, is_title, row_sections, sections

WIKI = [
    "",
    " = The Mill = ",
    "",
    " The mill stands by the river . ",
    " = = History = = ",
    " = = = Fire = = = ",
    " x = 3 = y",
    " = The = Bridge = ",
    " A bridge . ",
]


def test_only_level_1_headings_are_titles() -> None:
    assert [line for line in WIKI if is_title(line)] == [" = The Mill = ", " = The = Bridge = "]
    assert is_title("= The Mill =")
    assert not is_title("=====")


def test_articles_begin_at_their_titles() -> None:
    found = list(articles(WIKI))
    assert len(found) == 3  # an empty line stands before the first title
    assert found[1].startswith(" = The Mill = \n")
    assert "Fire" in found[1]
    assert found[2] == " = The = Bridge = \n A bridge . "
    assert "\n".join(found) == "\n".join(WIKI)


def test_one_title_does_not_make_articles() -> None:
    assert has_articles(WIKI)
    assert not has_articles(WIKI[:5])


def test_sections_are_whole_paragraphs_and_lose_nothing() -> None:
    draw = random.Random(3)
    for _ in range(50):
        paragraphs = ["word " * draw.randrange(1, 300) for _ in range(draw.randrange(1, 60))]
        lines = [line for paragraph in paragraphs for line in (paragraph, "")]
        found = list(sections(lines))
        assert "\n".join(found) == "\n".join(lines)
        if sum(map(len, paragraphs)) > 2000:
            assert min(map(len, found)) >= 1999
        for text in found[:-1]:
            assert text.endswith("\n")  # the blank line that ends a paragraph


def test_text_without_blank_lines_is_cut_at_line_ends() -> None:
    lines = [f"line {n} of a text that has no blank lines" for n in range(2000)]
    found = list(sections(lines))
    assert len(found) > 5
    assert "\n".join(found).split("\n") == lines


def test_rows_are_paragraphs_of_sections() -> None:
    rows = [f"row {n} " * 20 for n in range(100)]
    found = list(row_sections(rows))
    assert len(found) > 3
    assert [line for text in found for line in text.split("\n") if line] == rows
