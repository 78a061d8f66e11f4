"""The house rules that can be read off the source: arrows, sizes, no print, nothing half done."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dictlearn

PACKAGE = Path(dictlearn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# What every room may import of ours (besides itself). The flow goes downwards and never back.
BOTTOM = {"errors", "seeding", "codes", "processes", "mesh", "storage.atomic", "outage"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "seeding": set(),
    "codes": set(),
    "mesh": {"codes", "processes"},
    "noise": set(),
    "outage": set(),
    "processes": set(),
    "storage.atomic": set(),
    "launch": {"errors"},
    "begun": {"errors", "storage.atomic"},
    "stopping": {"errors"},
    "requeue": set(),
    "sweep": {"errors", "launch", "requeue", "stopping"},
    "voice": {"errors", "launch"},
    "cluster": {"errors", "launch"},
    "multirun": {"errors", "launch", "configuration"},
    "configuration": {"errors"},
    "text": BOTTOM,
    "transformer": BOTTOM,
    "hidden_states": BOTTOM | {"text", "transformer"},
    "prox": BOTTOM,
    "kernels": BOTTOM,
    "dictionary": BOTTOM | {"kernels"},
    "inference": BOTTOM | {"prox", "kernels", "dictionary"},
    "update": BOTTOM,
    "losses": BOTTOM | {"prox", "kernels", "dictionary", "inference"},
    "sharding": BOTTOM | {"dictionary", "inference", "prox", "update"},
    "metrics": BOTTOM,
    "storage": BOTTOM
    | {"prox", "dictionary", "inference", "hidden_states", "transformer", "configuration"},
    "learner": BOTTOM
    | {"losses", "prox", "dictionary", "inference", "update", "metrics", "hidden_states"}
    | {"sharding"},
    "ensemble": BOTTOM | {"learner", "hidden_states", "update"},
    "parallel": BOTTOM | {"ensemble", "sharding"},
    "variants": {"errors", "configuration"},
    "analysis": BOTTOM | {"storage"},
    "explorer": BOTTOM | {"analysis"},
    "loggers": BOTTOM,
    "callbacks": BOTTOM
    | {
        *("ensemble", "learner", "hidden_states", "analysis", "explorer", "loggers", "storage"),
        *("configuration", "variants", "begun", "stopping"),
    },
    "resuming": BOTTOM | {"storage"},
    "composing": BOTTOM
    | {"configuration", "dictionary", "ensemble", "hidden_states", "learner", "storage"},
    "trainer": BOTTOM
    | {"begun", "callbacks", "cluster", "configuration", "hidden_states", "storage"},
    "training": BOTTOM
    | {
        "callbacks",
        "composing",
        "configuration",
        "ensemble",
        "hidden_states",
        "learner",
        "loggers",
        "noise",
        "requeue",
        "resuming",
        "sharding",
        "stopping",
        "storage",
        "trainer",
        "variants",
    },
    "evaluation": BOTTOM
    | {
        "begun",
        "configuration",
        "explorer",
        "hidden_states",
        "inference",
        "metrics",
        "noise",
        "prox",
        "storage",
    },
    "caching": {"configuration", "errors", "hidden_states", "noise"},
    "summary": {"evaluation", "configuration", "errors", "noise", "storage", "variants"},
    "cli": {
        "begun",
        "caching",
        "configuration",
        "errors",
        "evaluation",
        "launch",
        "multirun",
        "stopping",
        "summary",
        "sweep",
        "training",
        "voice",
    },
    "__init__": {"storage"},
}


def room(module: str) -> str:
    parts = module.split(".")
    if parts[:2] == ["storage", "atomic"]:
        return "storage.atomic"
    return parts[0]


def our_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dictlearn":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dictlearn."):
            yield (node.module or "").removeprefix("dictlearn.")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("dictlearn."):
                    yield name.name.removeprefix("dictlearn.")


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = (first.end_lineno or 0) + 1 if documented else first.lineno
    return (node.end_lineno or 0) - start + 1


def test_every_room_imports_only_what_lies_upstream() -> None:
    for path in FILES:
        own = room(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        for module in our_imports(path):
            imported = room(module)
            assert imported == own or imported in ARROWS[own], f"{path}: {own} -> {imported}"


def test_the_table_of_arrows_has_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(ARROWS):
        free = {name for name, needs in ARROWS.items() if name not in done and needs <= done}
        assert free, f"cycle among {set(ARROWS) - done}"
        done |= free


def test_the_page_renderer_imports_no_torch() -> None:
    code = (
        "import sys, dictlearn.explorer.factors_page, dictlearn.explorer.frontier_page;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, dictlearn, dictlearn.cli, dictlearn.text;"
        "heavy = {'torch', 'pytorch_lightning', 'transformers', 'datasets', 'wandb'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sizes_stay_those_of_a_house_one_can_walk_through() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert max(lines.values()) <= 300, max(lines, key=lambda path: lines[path])
    sizes = {f"{path.name}:{node.name}": body_lines(node) for path, node in functions()}
    assert max(sizes.values()) <= 60, max(sizes, key=lambda name: sizes[name])
    assert statistics.median(sizes.values()) <= 8
    for path, node in functions():
        n = len(node.args.args) + len(node.args.kwonlyargs)
        assert n <= 16, f"{path.name}:{node.name} takes {n} arguments"


def test_public_things_have_docstrings() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: class {node.name}"


def test_nothing_is_half_done_and_nothing_prints() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), path
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                printed = node.func.id == "print" and path.name != "cli.py"
                assert not printed, f"{path}:{node.lineno} prints"


def test_loading_never_runs_code_from_a_file() -> None:
    """E1, E8 a loader that unpickles or trusts remote code: there is none in the source."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in text, path
        assert "allow_pickle=True" not in text, path
        assert not re.search(r"trust_remote_code\s*=\s*True", text), path
