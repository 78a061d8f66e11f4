"""The trainings that `frontier.py` compares: what they are, how they are done, where they are kept."""  # noqa: E501

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import ours, peers, vectors
from benchmarks.measure import Clock, training_order
from dictlearn.codes import Codes
from dictlearn.inference import exchange_pursuit, omp, price_for_exchange, price_for_l0
from dictlearn.inference.exchange import MOST
from dictlearn.kernels import reconstruct
from dictlearn.prox import Soft, TopK

Found = dict[str, Any]
Rates = tuple[float | None, ...]
ADAM: Rates = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
SIGNUM: Rates = (0.5, 1.0, 0.25, 2.0)  # of the peer's default for the number of atoms
DEFAULT: Rates = (None,)

METHODS: dict[str, dict[tuple[str, str], Rates]] = {
    "presets": {
        ("dictlearn", "topk"): ADAM,
        ("dictlearn", "batch_topk"): ADAM,
        ("dictlearn", "gated"): ADAM,
        ("dictlearn", "jump"): ADAM,
    },
    "peers": {
        ("dictionary-learning", "topk"): ADAM,
        ("dictionary-learning", "batch_topk"): ADAM,
        ("eai-sparsify", "topk"): SIGNUM,
        ("sae-lens", "topk"): ADAM,
        ("sae-lens", "batch_topk"): ADAM,
        ("overcomplete", "topk"): ADAM,
    },
    "ours": {("dictlearn", "two_phase"): DEFAULT, ("dictlearn", "exact"): DEFAULT},
    "encoders": {
        ("dictlearn", "unrolled_2"): DEFAULT,
        ("dictlearn", "unrolled_3"): DEFAULT,
        ("dictlearn", "unrolled_3_restricted"): DEFAULT,
        ("dictlearn", "unrolled_5_restricted"): DEFAULT,
        ("dictlearn", "batch_3_rescreened"): DEFAULT,
        ("dictlearn", "batch_4_refitted"): DEFAULT,
    },
}
OVERRIDES = {
    "topk": ["experiment=topk_sae", "prox.k={k}"],
    "batch_topk": ["experiment=batch_topk_sae", "prox.k={k}"],
    "gated": ["experiment=gated_sae", "++prox.target_l0={k}"],
    "jump": ["experiment=jump_relu_sae", "prox.target_l0={k}"],
    "two_phase": ["inference=two_phase", "prox=batch_topk", "prox.k={k}", "update=phased"],
    "exact": [
        *("inference=working_set", "inference.tolerance=0.001", "prox=soft", "prox.lambda_=0.06"),
        *("++prox.target_l0={k}", "update=hessian_diagonal"),
    ],
    "unrolled_2": ["inference=unrolled", "inference.n_layers=2", "prox=topk", "prox.k={k}"],
    "unrolled_3": ["inference=unrolled", "inference.n_layers=3", "prox=topk", "prox.k={k}"],
    "unrolled_3_restricted": [
        *("inference=unrolled", "inference.n_layers=3", "++inference.n_candidates=128"),
        *("prox=topk", "prox.k={k}"),
    ],
    "batch_3_rescreened": [
        *("inference=unrolled", "inference.n_layers=3", "++inference.n_candidates=48"),
        *("++inference.rescreen=true", "prox=batch_topk", "prox.k={k}"),
    ],
    "batch_4_refitted": [
        *("inference=unrolled", "inference.n_layers=4", "++inference.n_candidates=40"),
        *("++inference.rescreen=true", "inference.refit=true", "inference.refit_steps=1"),
        *("prox=batch_topk", "prox.k={k}"),
        *("update=adam", "update.lr=0.01", "update.decay_fraction=0.7"),
    ],
    "unrolled_5_restricted": [
        *("inference=unrolled", "inference.n_layers=5", "++inference.n_candidates=128"),
        *("prox=topk", "prox.k={k}"),
    ],
}
PURSUITS: dict[str, Callable[..., Codes]] = {"omp": omp, "exchange": exchange_pursuit}
OUR_INFERENCE = (*PURSUITS, "lasso_refit", "shared")


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        part: of the comparison.
        side: `dictlearn` or a peer.
        method: which autoencoder or recipe.
        n_atoms: m.
        rate: learning rate, of signum a multiple of the default; None for the config's own.
        n_vectors: the budget.
    """

    part: str
    side: str
    method: str
    n_atoms: int
    rate: float | None
    n_vectors: int

    @property
    def name(self) -> str:
        """Return what its files are called; equal trainings of two parts share nothing."""
        rate = "default" if self.rate is None else f"{self.rate:.3g}"
        return f"{self.part}-{self.side}-{self.method}-m{self.n_atoms}-lr{rate}-n{self.n_vectors}"


class Shop:
    """Where trainings are done and kept.

    Args:
        arguments: of `frontier.py`.
        rows: the vectors.
        k: codes per row that dictionaries are trained for.
    """

    def __init__(self, arguments: argparse.Namespace, rows: vectors.Rows, k: int) -> None:
        self.arguments, self.rows, self.k = arguments, rows, k
        key = f"{rows.train.parent.name}-k{k}-b{arguments.batch}"
        self.place = arguments.data / "benchmarks" / "frontier" / key
        self.place.mkdir(parents=True, exist_ok=True)
        train, held = rows.load(n_held=arguments.held_rows)
        self.x, self.held = train.to(arguments.device), held.to(arguments.device)
        self.held_file = self.place / "held.npy"
        np.save(self.held_file, held.numpy())

    def found(self) -> list[Found]:
        """Return all that is kept."""
        files = sorted(self.place.glob("*.json"))
        return [json.loads(path.read_text()) for path in files]

    def do(self, training: Training) -> Found:
        """Return the figures of a training, done now if they are not kept."""
        file = self.place / f"{training.name}.json"
        tensors = self.place / f"{training.name}.npz"
        figures: Found = {}
        if file.exists() and not self.arguments.redo:
            figures = json.loads(file.read_text())
        if not figures:
            method = self._ours if training.side == "dictlearn" else self._peer
            figures = method(training, tensors)
            figures |= {key: getattr(training, key) for key in Training.__dataclass_fields__}
            _keep(file, figures)
        if f"shared@{self.k}" not in figures:
            figures |= self._by_our_inference(training, tensors)
            _keep(file, figures)
        return figures

    def _ours(self, training: Training, tensors: Path) -> Found:
        overrides = [entry.format(k=self.k) for entry in OVERRIDES[training.method]]
        overrides.append(f"dictionary.n_atoms={training.n_atoms}")
        if training.rate is not None:
            overrides.append(f"update.lr={training.rate}")
        run = ours.Run(overrides, self.x, self.arguments.batch, training.n_vectors)
        figures: Found = dict(run.train(training_order(len(self.x), training.n_vectors, 0)))
        ours.save(tensors, run)
        figures["label"] = "dictlearn"
        for k in self._levels(training, run):
            codes = [run.codes(part, k) for part in torch.split(self.held, 1024)]
            decoded = torch.cat([run.decode(part) for part in codes])
            figures[f"fvu@{k}"] = vectors.fvu(self.held, decoded)
            figures[f"l0@{k}"] = float(torch.cat([part.l0() for part in codes]).double().mean())
            fired = torch.stack([part.fired() for part in codes]).sum(0)
            figures[f"silent@{k}"] = float((fired == 0).double().mean())
        some = self.held[:1024]
        figures["encode_us"] = 1e6 * time_of(lambda: run.codes(some), some) / len(some)
        if training.part == "encoders":
            figures["topk_encodes"] = self._topk_encodes(run, training.n_atoms, some)
        return figures

    def _topk_encodes(self, run: ours.Run, m: int, some: Tensor, turns: int = 9) -> float:
        """Return what an encode of the run costs, in encodes of a TopK autoencoder in turn."""
        overrides = [entry.format(k=self.k) for entry in OVERRIDES["topk"]]
        n = min(100_000, self.arguments.n_vectors)  # one that has just begun is slower
        topk = ours.Run([*overrides, f"dictionary.n_atoms={m}"], self.x, self.arguments.batch, n)
        topk.train(training_order(len(self.x), n, 0))
        both = [
            (time_of(lambda: run.codes(some), some, 1), time_of(lambda: topk.codes(some), some, 1))
            for _ in range(turns)
        ]
        return min(one for one, _ in both) / min(other for _, other in both)

    def _levels(self, training: Training, run: ours.Run) -> list[int]:
        """Return the k at which the run's own inference is evaluated."""
        counts = isinstance(run.learner.prox, TopK)  # others are steered to one L0
        return list(self.arguments.levels) if counts else [self.k]

    def _peer(self, training: Training, tensors: Path) -> Found:
        rate = training.rate
        if training.side == "eai-sparsify" and rate is not None:
            rate *= 5e-3 / (training.n_atoms / 2**14) ** 0.5
        arguments = self.arguments
        with peers.Worker(training.side, arguments.data, arguments.threads) as worker:
            figures = worker.call(
                "train",
                method=training.method,
                n_atoms=training.n_atoms,
                k=self.k,
                lr=rate,
                batch=arguments.batch,
                n_vectors=training.n_vectors,
                device=arguments.device,
                seed=0,
                evaluate=list(arguments.levels),
                vectors=str(self.rows.train),
                held=str(self.held_file),
                out=str(tensors),
            )
            return figures | {"label": worker.label}

    def _by_our_inference(self, training: Training, tensors: Path) -> Found:
        """Return the error of the dictionary with codes inferred by us, at every L0."""
        kept = np.load(tensors)
        atoms = torch.from_numpy(kept["atoms"]).to(self.held)
        atoms = torch.nn.functional.normalize(atoms, dim=1)
        bias = torch.from_numpy(kept["bias"]).to(self.held)
        x, figures = self.held - bias, Found()
        for name, pursuit in PURSUITS.items():
            everywhere = name == "omp" or training.part == "ours"
            for k in self.arguments.levels if everywhere else [self.k]:
                codes = [pursuit(part, atoms, k) for part in torch.split(x, 1024)]
                figures[f"{name}@{k}"] = self._error(codes, atoms, bias)
        for k in self.arguments.levels if training.part == "ours" else [self.k]:
            figures |= self._shared(k, x, atoms, bias)
        if training.part == "ours":
            figures |= self._lasso_refit(x, atoms, bias)
        inferred = [figures.get(f"{name}@{self.k}") for name in OUR_INFERENCE]
        figures[f"best@{self.k}"] = min(value for value in inferred if value is not None)
        return figures

    def _shared(self, k: int, x: Tensor, atoms: Tensor, bias: Tensor) -> Found:
        """Return the error of exchange pursuit at one price for all rows, k codes on average."""
        # Drawn: every so-manieth row would be at the same places of its sequence.
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:2048]
        most = min(MOST * k, len(atoms))
        price = price_for_exchange(x[some.to(x.device)], atoms, k, accuracy=0.003)
        codes = [exchange_pursuit(p, atoms, most, price=price) for p in torch.split(x, 1024)]
        l0 = float(torch.cat([part.l0() for part in codes]).double().mean())
        return {f"shared@{k}": self._error(codes, atoms, bias), f"shared_l0@{k}": l0}

    def _lasso_refit(self, x: Tensor, atoms: Tensor, bias: Tensor) -> Found:
        """Return the error of l1 codes at the L0 trained for, and of their refit."""
        from dictlearn.inference.refit import refit
        from dictlearn.inference.working_set import solve

        prox, plain, better = Soft(price_for_l0(x[:1024], atoms, self.k)), [], []
        for part in torch.split(x, 1024):
            codes = solve(part, atoms, prox, tolerance=1e-4).codes
            plain.append(codes)
            better.append(refit(part, codes, atoms))
        l0 = float(torch.cat([codes.l0() for codes in plain]).double().mean())
        return {
            f"lasso@{self.k}": self._error(plain, atoms, bias),
            f"lasso_refit@{self.k}": self._error(better, atoms, bias),
            f"lasso_l0@{self.k}": l0,
        }

    def _error(self, codes: list[Codes], atoms: Tensor, bias: Tensor) -> float:
        decoded = torch.cat([reconstruct(part, atoms) for part in codes])
        return vectors.fvu(self.held, decoded + bias)


def _keep(file: Path, figures: Found) -> None:
    """Write figures beside their place and rename, so that a stopped run leaves no half of them."""
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(figures, indent=1) + "\n")
    beside.replace(file)


def time_of(encode: Callable[[], Any], x: Tensor, repeats: int = 5) -> float:
    """Return the least seconds of some runs: CPU seconds, or on a GPU wall seconds."""
    clocks = []
    for _ in range(repeats):
        clock = Clock(x.device.type)
        encode()
        spent = clock.read()
        clocks.append(spent["wall" if x.device.type == "cuda" else "cpu"])
    return min(clocks)
