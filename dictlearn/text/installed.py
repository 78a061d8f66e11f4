"""The English documentation that every Python installation carries: real text, no network."""

from __future__ import annotations

import ast
import importlib.util
import logging
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dictlearn.errors import InputError, nearest
from dictlearn.text.documents import Document, check_fraction, check_limit, digest, limited
from dictlearn.text.prose import PROSE_VERSION, paragraphs

logger = logging.getLogger(__name__)

# Chosen for varied prose per second of parsing; all of them come with our own dependencies.
DEFAULT_PACKAGES = (
    *("pydoc", "stdlib", "hydra", "jinja2", "networkx", "numpy", "omegaconf"),
    *("pytorch_lightning", "rich", "safetensors", "torch.autograd", "torch.distributions"),
    *("torch.nn", "torch.optim", "transformers.data", "transformers.generation"),
)
_MIN_CHARACTERS = 200  # a module with less prose than this is not a document
_SKIPPED_FOLDERS = frozenset(  # tests, other people's packages, and sources with little prose
    {"test", "tests", "testing", "_testing", "site-packages", "dist-packages", "_vendor", "vendor"}
    | {"lib2to3", "turtledemo", "ensurepip", "pydoc_data", "idlelib", "encodings", "distutils"}
    | {"f2py"}
)


def _docstrings(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield the docstrings of a module or class, of its classes, functions and methods."""
    yield ast.get_docstring(node, clean=False) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(child, clean=False) or ""


def _parse(path: Path) -> ast.Module:
    """Parse a source file; one that this Python cannot read counts as empty."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:  # no docstrings worth the parsing
            return ast.Module([], [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences of others
            return ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ast.Module([], [])


def _is_wanted(path: Path, root: Path) -> bool:
    *folders, name = path.relative_to(root).parts
    return not (
        _SKIPPED_FOLDERS.intersection(folders)
        or name.startswith("test_")
        or name in _SKIPPED_FOLDERS
    )


def _modules(location: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (dotted name, source file) of the modules at a location, sorted by name.

    Args:
        location: a package folder, or a module's path with or without ``.py``.
        root: the folder from which dotted names count.
    """
    if location.is_dir():
        files = [path for path in location.rglob("*.py") if _is_wanted(path, location)]
    else:
        file = location.with_suffix(".py")
        files = [file] if file.is_file() else []
    named = ((path.relative_to(root).with_suffix("").parts, path) for path in files)
    yield from sorted((".".join(parts).removesuffix(".__init__"), path) for parts, path in named)


def _standard_library() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - _SKIPPED_FOLDERS):
        yield from _modules(root / name, root)


def _locate(package: str) -> tuple[Path, Path] | None:
    """Return (location, root) of an installed package or sub-package, without importing it."""
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    base = Path(folders[0]) if folders else Path(spec.origin or "missing").with_suffix("")
    location = base.joinpath(*rest)
    found = location.is_dir() or location.with_suffix(".py").is_file()
    return (location, base.parent) if found else None


def _topics() -> dict[str, str]:
    """Return the topics of ``help()``: the language reference, one text for each topic."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    for statement in _parse(path).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            return topics
    return {}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed version of the distribution that each package came with."""
    distributions = metadata.packages_distributions()
    tops = sorted({package.split(".")[0] for package in packages} - {"pydoc", "stdlib"})
    return {top: ",".join(map(metadata.version, distributions.get(top, []))) for top in tops}


@dataclass(frozen=True)
class InstalledDocs:
    """Documentation of this Python and of installed packages, cleaned to paragraphs of prose.

    One document is one topic of ``help()`` or the docstrings of one module. The sources are
    parsed, never imported. A paragraph that occurs twice is kept where it occurs first.

    Attributes:
        packages: ``pydoc`` (the topics of ``help()``), ``stdlib``, or installed packages and
            sub-packages such as ``torch.nn``; None: a choice that is varied and quick to read.
        max_documents: only the first so many documents; None: all.
        validation_fraction: share of the documents that is never trained on, in [0, 1).

    Raises:
        InputError: a package is not installed, or an option is out of its bounds.
    """

    packages: Sequence[str] | None = None
    max_documents: int | None = None
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_fraction(self.validation_fraction)
        object.__setattr__(self, "max_documents", check_limit(self.max_documents))
        if isinstance(self.packages, str):
            object.__setattr__(self, "packages", (self.packages,))
        chosen = DEFAULT_PACKAGES if self.packages is None else tuple(self.packages)
        missing = [p for p in chosen if p not in ("pydoc", "stdlib") and _locate(p) is None]
        for package in missing:
            if self.packages is not None:
                known = [*DEFAULT_PACKAGES, *metadata.packages_distributions()]
                raise InputError(
                    f"text.packages={package} is not installed here.{nearest(package, known)}"
                )
            logger.info("no documentation of %s: it is not installed", package)
        object.__setattr__(self, "packages", tuple(sorted({*chosen} - {*missing})))

    @property
    def name(self) -> str:
        """Return ``installed_docs``."""
        return "installed_docs"

    def fingerprint(self) -> str:
        """Return a hash of the versions of Python and the packages, and of the options."""
        packages = list(self.packages or ())
        options = [packages, self.max_documents, PROSE_VERSION, _MIN_CHARACTERS]
        return digest([self.name, platform.python_version(), _versions(packages), options])

    def documents(self) -> Iterator[Document]:
        """Yield topics and modules, sorted by package, then by module."""
        origin = f"text.packages=[{','.join(self.packages or ())}]"
        return limited(self._modules_of_prose(), _MIN_CHARACTERS, self.max_documents, origin)

    def _modules_of_prose(self) -> Iterator[Document]:
        seen: set[str] = set()
        for id, docstrings in self._texts():
            kept = [p for text in docstrings for p in paragraphs(text)]
            new = [p for p in dict.fromkeys(kept) if p not in seen]
            seen.update(new)
            yield Document(id, "\n\n".join(new))

    def _texts(self) -> Iterator[tuple[str, Iterable[str]]]:
        """Yield (document id, its docstrings)."""
        for package in self.packages or ():
            if package == "pydoc":
                for topic, text in sorted(_topics().items()):
                    yield f"pydoc:topics/{topic}", [text]
                continue
            modules = _standard_library() if package == "stdlib" else self._package(package)
            for module, path in modules:
                yield f"{package.split('.')[0]}:{module}", _docstrings(_parse(path))

    def _package(self, package: str) -> Iterator[tuple[str, Path]]:
        found = _locate(package)
        return iter(()) if found is None else _modules(*found)
