"""The peers, each in an environment of its own, and how a benchmark talks to them.

    python benchmarks/peers.py [--only NAME ...] [--data DIR]     # install, print the versions

An environment is a venv under `data/benchmarks/envs/`. All of them share one installation of torch
(`envs/torch`, the version named below), so that every peer computes with the same one; what else a
peer needs is installed for it alone. What cannot be installed is said in the tables and stops
nothing. A peer runs as a worker process (`benchmarks/workers/run_*.py`) that reads one JSON line
per task and answers with one; vectors and results travel as `.npy` and `.npz` files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import Table

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
BASE = ("torch", (f"torch=={TORCH}", "numpy"))


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Attributes:
        name: the distribution, as in its registry.
        installs: arguments of `pip install`, one call after the other.
        needs_torch: whether it computes with torch.
        stubbed: what it imports and training does not use: not installed, stubbed by the worker.
    """

    name: str
    installs: tuple[tuple[str, ...], ...]
    needs_torch: bool = True
    stubbed: str = ""

    @property
    def worker(self) -> Path:
        """Return its worker script."""
        name = self.name.replace("-", "_")
        return Path(__file__).resolve().parent / "workers" / f"run_{name}.py"


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "dictionary-learning",
            (("--no-deps", "dictionary-learning"), ("einops", "tqdm")),
            stubbed="nnsight, wandb, datasets, zstandard",
        ),
        Peer("eai-sparsify", (("eai-sparsify",),)),
        Peer("sae-lens", (("sae-lens",),)),
        Peer(
            "overcomplete",
            (("--no-deps", "overcomplete"), ("einops", "scikit-learn", "pillow", "tqdm")),
            stubbed="its visualization and models (matplotlib < 3.9, opencv, torchvision, timm)",
        ),
        Peer("spams-bin", (("spams-bin",),), needs_torch=False),
        Peer("scikit-learn", (("scikit-learn",),), needs_torch=False),
    )
}


class MissingPeerError(Exception):
    """A peer that is not there, and why."""


def environments(data: Path) -> Path:
    """Return the folder of the environments under the data folder."""
    return data / "benchmarks" / "envs"


def python_of(peer: Peer, data: Path, *, install: bool = True) -> Path:
    """Return the interpreter of a peer's environment, made now if it is not there.

    Raises:
        MissingPeerError: it cannot be installed, or is not there and must not be.
    """
    home = environments(data) / peer.name
    done, failed = home / "installed.json", home / "failed.txt"
    if not done.exists() and install:
        if failed.exists():
            raise MissingPeerError(failed.read_text())
        try:
            if peer.needs_torch:
                _install(environments(data) / BASE[0], [BASE[1]])
            _install(home, peer.installs, peer.needs_torch)
        except subprocess.CalledProcessError as error:
            last = [line for line in str(error.stderr).splitlines() if line.strip()][-1:]
            failed.write_text(f"not installed: {' '.join(last)}")
            raise MissingPeerError(failed.read_text()) from error
    if not done.exists():
        raise MissingPeerError("not installed")
    return _python(home)


def _python(home: Path) -> Path:
    return home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _install(home: Path, installs: Iterable[tuple[str, ...]], needs_torch: bool = False) -> None:
    """Make an environment, unless it is complete."""
    done = home / "installed.json"
    if done.exists():
        return
    print(f"installing {home.name} in {home} ...", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True, clear=True)
    (home / "failed.txt").unlink(missing_ok=True)
    python = _python(home)
    limit: tuple[str, ...] = ()
    if needs_torch:
        shared = _site_packages(_python(home.parent / BASE[0]))
        (_site_packages(python) / "shared_torch.pth").write_text(f"{shared}\n")
        (home / "constraints.txt").write_text(f"torch=={TORCH}\n")
        limit = ("--constraint", str(home / "constraints.txt"))
    for arguments in installs:
        pip = (str(python), "-m", "pip", "install", "--quiet", *limit, *arguments)
        subprocess.run(pip, check=True, capture_output=True, text=True)
    done.write_text(json.dumps(sorted(_freeze(python)), indent=1) + "\n")


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output((str(python), "-c", code), text=True).strip())


def _freeze(python: Path) -> list[str]:
    return subprocess.check_output((str(python), "-m", "pip", "freeze"), text=True).splitlines()


class Worker:
    """A peer at work: a process that answers one task after the other.

    Args:
        name: a peer.
        data: the data folder.
        threads: threads of every library in it.
        install: whether to install what is missing.

    Raises:
        MissingPeerError: the peer is not there.
    """

    def __init__(self, name: str, data: Path, threads: int = 1, *, install: bool = True) -> None:
        peer = PEERS[name]
        python = python_of(peer, data, install=install)
        environment = os.environ | _threads(threads)
        environment.pop("PYTHONPATH", None)
        self.name = name
        self._log = (environments(data) / peer.name / "worker.log").open("w")
        self._process = subprocess.Popen(
            (str(python), str(peer.worker)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.versions: dict[str, str] = self.call("versions", threads=threads)
        except RuntimeError as error:
            self.close()
            raise MissingPeerError(f"does not start: {error}") from error

    @property
    def label(self) -> str:
        """Return name and version."""
        return f"{self.name} {self.versions.get(self.name, '?')}"

    def call(self, task: str, **settings: Any) -> dict[str, Any]:
        """Return the answer to a task.

        Raises:
            RuntimeError: the task failed; the message is the peer's.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, **settings}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: what is left to read says so
        line = self._process.stdout.readline()
        if not line:
            self._log.flush()
            last = Path(self._log.name).read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"{self.name} ended: {' '.join(last)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _threads(n: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(n)) | {"OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "disabled"}


def main(argv: list[str] | None = None) -> None:
    """Install the peers and print their versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument(
        "--retry", action="store_true", help="try again what could not be installed"
    )
    arguments = parser.parse_args(argv)
    table = Table("Peers", ["peer", "version", "torch", "note"])
    for name in arguments.only:
        if arguments.retry:
            (environments(arguments.data) / name / "failed.txt").unlink(missing_ok=True)
        try:
            with Worker(name, arguments.data) as worker:
                found = worker.versions
        except MissingPeerError as reason:
            table.row(name, "-", "-", str(reason))
            continue
        stubbed = PEERS[name].stubbed
        note = f"without {stubbed}" if stubbed else ""
        table.row(name, found[name], found.get("torch", "-"), note)
    table.print()


if __name__ == "__main__":
    main()
