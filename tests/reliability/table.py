"""The public table of faults, made from the tests: python -m tests.reliability.table

A test that proves a promise begins its docstring with the rows of the table it belongs to, the
fault, a colon, and the promise: ``A4 a checkpoint is truncated: found by its digest, ...``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent.parent
README = Path(__file__).parent / "README.md"

SECTIONS = {
    "A": "Storage",
    "B": "Data and numbers",
    "C": "Processes and ranks",
    "D": "Outside services",
    "E": "Hostile or wrong input",
}
ROWS = {
    "A1": "a process is killed at any instant of a save",
    "A2": "power fails after a save",
    "A3": "the disk is full",
    "A4": "a checkpoint is damaged on disk",
    "A5": "stored tokens or hidden states are damaged on disk",
    "A6": "several processes make the same store at once",
    "A7": "the run directory cannot be written",
    "A8": "old checkpoints are cleared away",
    "B1": "hidden states are not finite",
    "B2": "gradients are not finite",
    "B3": "single vectors are far longer than the others",
    "B4": "half precision overflows",
    "B5": "number formats are mixed",
    "B6": "documents are empty, odd or gigantic",
    "B7": "tokenizer and model do not belong together",
    "B8": "documents come twice",
    "B9": "padding could be taken for data",
    "B10": "training text could leak into the held-out text",
    "C1": "a rank is killed",
    "C2": "a rank raises",
    "C3": "a rank hangs",
    "C4": "the run is asked to end (SIGTERM, SIGUSR1)",
    "C5": "the user interrupts (SIGINT, a second signal)",
    "C6": "what reads the data fails",
    "C7": "the GPU has too little memory",
    "C8": "the host has too little memory",
    "C9": "a run goes on with another number of processes",
    "C10": "a run is stopped many times",
    "C11": "a run is repeated",
    "C12": "an elastic launcher starts the processes again",
    "D1": "W&B cannot be reached at the start",
    "D2": "W&B fails in mid-run",
    "D3": "a run that logs is killed",
    "D4": "the hub fails in mid-stream",
    "D5": "a dataset or model cannot be had",
    "E1": "a file hides code (pickle)",
    "E2": "a config names code",
    "E3": "a name leads out of its folder",
    "E4": "the command line is wrong",
    "E5": "text hides HTML or scripts",
    "E6": "a file lies about its size",
    "E7": "secrets are in the environment",
    "E8": "a model brings its own code",
    "E9": "a file is from a newer version",
}
_LABELS = re.compile(r"([A-E]\d+(?:, [A-E]\d+)*) (.*)", re.DOTALL)


class Proof(NamedTuple):
    """One test, and what it proves."""

    rows: tuple[str, ...]
    fault: str
    promise: str
    test: str
    slow: bool
    run: bool

    @property
    def kind(self) -> str:
        """When it runs, and what it costs."""
        return "slow" if self.slow else "run" if self.run else "fast"


def proofs() -> list[Proof]:
    """Return what the tests of this repository prove, in the order of the files."""
    return [proof for path in sorted(TESTS.rglob("test_*.py")) for proof in _of_file(path)]


def _of_file(path: Path) -> Iterator[Proof]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    all_slow = any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "pytestmark"
        and "mark.slow" in ast.unparse(node.value)
        for node in tree.body
    )
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        found = _LABELS.fullmatch(" ".join((ast.get_docstring(node) or "").split()))
        if found is None:
            continue
        fault, _, promise = found.group(2).partition(": ")
        marks = [ast.unparse(decorator) for decorator in node.decorator_list]
        slow = all_slow or "pytest.mark.slow" in marks  # of which not a single case is fast
        test = f"{path.relative_to(TESTS).as_posix()}::{node.name}"
        run = test.startswith(("resume/", "integration/")) or "pytest.mark.run" in marks
        yield Proof(tuple(found.group(1).split(", ")), fault, promise, test, slow, run)


def table(found: list[Proof]) -> str:
    """Return the page."""
    lines = [_HEAD]
    for letter, title in SECTIONS.items():
        lines += [f"\n## {letter}. {title}\n", "| | fault | promise | test | |", "|-|-|-|-|-|"]
        for row in (row for row in ROWS if row[0] == letter):
            lines += [_line(row, proof) for proof in found if row in proof.rows]
    missing = [f"- {row}: {ROWS[row]}" for row in ROWS if not any(row in p.rows for p in found)]
    if missing:
        lines += ["\n## No test yet\n", *missing]
    return "\n".join(lines) + "\n"


def _line(row: str, proof: Proof) -> str:
    fault, promise = (text.rstrip(".").replace("|", r"\|") for text in (proof.fault, proof.promise))
    name = proof.test.partition("::")
    link = f"[{name[2].removeprefix('test_').replace('_', ' ')}](../{name[0]})"
    return f"| {row} | {fault} | {promise} | {link} | {proof.kind} |"


_HEAD = """\
# What can go wrong, what is promised then, and the test that does it

Every line is a test that injects the fault and checks the promise. Made from the docstrings of the
tests by `python -m tests.reliability.table`; do not edit.

- fast: part of `make test`, together less than a minute on two cores (and a third to be found):
  `python -m pytest -n 2 -m "fault and not run and not slow"`
- run: whole runs, many of them to be equal, stopped or not, on one process or two; part of
  `make test`, too: `python -m pytest -n 2 -m "run and not slow"`
- slow: real processes that are signalled, killed and started again:
  `python -m pytest -m "fault and slow"`"""


if __name__ == "__main__":
    README.write_text(table(proofs()), encoding="utf-8")
