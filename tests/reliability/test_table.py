"""The public table says what the tests say, and every row has a test."""

from tests.reliability.table import README, ROWS, proofs, table


def test_the_page_is_what_the_tests_say() -> None:
    assert README.read_text(encoding="utf-8") == table(proofs()), (
        "run: python -m tests.reliability.table"
    )


def test_every_row_has_a_test_and_every_test_a_promise() -> None:
    found = proofs()
    assert {row for proof in found for row in proof.rows} == set(ROWS)
    assert [proof.test for proof in found if not (proof.fault and proof.promise)] == []
