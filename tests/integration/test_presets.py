"""Each autoencoder preset is its published formula, in loss and gradients, and learns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import dictlearn
from dictlearn import cli
from dictlearn.configuration import build, plain
from dictlearn.dictionary import Dictionary
from dictlearn.inference import Inference, Solution
from dictlearn.learner import DictionaryLearner
from dictlearn.losses import Loss, View
from dictlearn.prox import Jump, Moment, Prox
from tests.small_run import small_data, small_trainer
from tests.test_configs import composed

N, M, D, K = 40, 32, 12, 4
DEAD = (4, 9, 30)
PRICE = 0.07
MOMENT = Moment(0.6, 0, 10)


class Parts(NamedTuple):
    """What a preset composes, small, in float64, and away from where it starts."""

    raw: Tensor
    dictionary: Dictionary
    prox: Prox
    inference: Inference
    loss: Loss

    def named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = dict(self.dictionary.named_parameters())
        for name, parameter in self.inference.named_parameters():
            named[f"inference.{name}"] = parameter
        return named

    def parameter(self, name: str) -> Tensor:
        return self.named()[name]

    def centred(self) -> Tensor:
        return self.raw - self.parameter("bias")

    def scores(self) -> Tensor:
        """The one layer's pre-activations: `log_steps` is the common scale of its matrix."""
        scale = self.parameter("inference.log_steps.0").exp()
        matrix = scale * self.parameter("inference.analysis.0")
        return self.centred() @ matrix.T - self.parameter("inference.thresholds.0")


def parts(name: str, out: Path) -> Parts:
    small = [f"experiment={name}", f"dictionary.n_atoms={M}"]
    small += {
        "topk_sae": [f"prox.k={K}"],
        "batch_topk_sae": [f"prox.k={K}"],
        "matryoshka_sae": [f"prox.k={K}"],
        "mp_sae": [f"prox.k={K}"],
    }.get(name, [f"prox.target_l0={K}"])
    config = composed(*small, out=out)
    dictionary = Dictionary(M, D, bias=config.dictionary.bias, seed=1).double()
    prox: Prox = build(config.prox)
    inference: Inference = build(config.inference)
    g = torch.Generator().manual_seed(7)
    raw = torch.randn(N, D, generator=g, dtype=torch.float64)
    dictionary.initialize_from(raw)
    prox.check(M)
    inference.build(dictionary, prox)
    inference.double()
    loss: Loss = build(config.loss)
    loss.check(M, inference)
    made = Parts(raw, dictionary, prox, inference, loss)
    with torch.no_grad():
        for parameter in made.named().values():
            noise = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
            parameter.add_(noise, alpha=0.05)
        dictionary.renormalize_()
    steered = prox.steered_to is not None
    priced = prox.priced(torch.tensor(PRICE, dtype=torch.float64)) if steered else prox
    return made._replace(prox=priced.at(MOMENT))


def ours(p: Parts) -> Tensor:
    x = p.dictionary.centre(p.raw)
    solution: Solution = p.inference(x, p.dictionary.atoms, p.prox)
    dead = torch.zeros(M, dtype=torch.bool)
    dead[list(DEAD)] = True
    return p.loss(
        View(
            x,
            p.dictionary.decode(solution.codes),
            solution,
            p.dictionary,
            p.inference,
            p.prox,
            torch.ones(N, dtype=torch.float64),
            dead,
            100 * dead.long(),
        )
    )


def error(p: Parts, codes: Tensor) -> Tensor:
    decoded = codes @ p.parameter("atoms") + p.parameter("bias")
    return 0.5 * (p.raw - decoded).square().sum(1).mean()


def auxiliary(p: Parts, codes: Tensor) -> Tensor:
    """Gao et al. 2024: alpha times the error of the dead atoms on the residual, normalised."""
    residual = (p.centred() - codes @ p.parameter("atoms")).detach()
    some = list(DEAD)
    matrix = p.parameter("inference.analysis.0")[some]
    scale = p.parameter("inference.log_steps.0").detach().exp()
    threshold = p.parameter("inference.thresholds.0")[some]
    z = (scale * p.centred().detach() @ matrix.T - threshold).relu()
    missed = (residual - z @ p.parameter("atoms")[some]).square().sum()
    return missed / (residual - residual.mean(0)).square().sum() / 32 / 2


def largest(scores: Tensor, count: int) -> Tensor:
    """Keep the largest positive entries along the last dimension."""
    kept = scores.topk(count)
    return torch.zeros_like(scores).scatter(-1, kept.indices, kept.values.relu())


def relu_sae(p: Parts) -> Tensor:
    codes = p.scores().relu()
    return error(p, codes) + PRICE * codes.sum(1).mean()


def topk_sae(p: Parts) -> Tensor:
    codes = largest(p.scores(), K)
    return error(p, codes) + auxiliary(p, codes)


def batch_topk_sae(p: Parts) -> Tensor:
    codes = largest(p.scores().flatten(), N * K).view(N, M)
    return error(p, codes) + auxiliary(p, codes)


def matryoshka_sae(p: Parts) -> Tensor:
    codes = largest(p.scores().flatten(), N * K).view(N, M)
    total = torch.zeros((), dtype=torch.float64)
    for end in (2, 4, 8, 16, 32):
        first = codes * (torch.arange(M) < end)
        total = total + error(p, first) / 5
    return total + auxiliary(p, codes)


def gated_sae(p: Parts) -> Tensor:
    projected = p.centred() @ p.parameter("inference.analysis").T
    gate = projected + p.parameter("inference.gate_bias")
    stretched = projected * p.parameter("inference.log_magnitude").exp()
    magnitude = (stretched + p.parameter("inference.magnitude_bias")).relu()
    codes = (gate > 0) * magnitude
    frozen, bias = p.parameter("atoms").detach(), p.parameter("bias").detach()
    by_gate = gate.relu() @ frozen + bias
    return (
        error(p, codes)
        + PRICE * gate.relu().sum(1).mean()
        + 0.5 * (p.raw - by_gate).square().sum(1).mean()
    )


def p_anneal_sae(p: Parts) -> Tensor:
    power, eps = 1 + 2 / 3 * (0.2 - 1), 1e-2  # two thirds of the way from 0.2 to 0.8 of the run
    codes = p.scores().relu()
    powers = (codes + eps).pow(power) - math.pow(eps, power)
    price = PRICE * codes.detach().sum() / powers.detach().sum()
    return error(p, codes) + price * powers.sum(1).mean()


def jump_relu_sae(p: Parts) -> Tensor:
    """Rajamanoharan et al. 2024, eqs. 9 to 12: steps with the slope of a rectangle's window."""
    given = p.prox
    assert isinstance(given, Jump)
    scale, factor = (
        p.inference.get_buffer("jumps.scales")[0],
        p.parameter("inference.jumps.factors.0"),
    )
    theta = scale * (5.0 * factor).exp()
    v = p.scores()
    step = (v > theta).to(v.dtype).detach()
    slope = ((v - theta).abs() < given.bandwidth / 2).detach() / given.bandwidth
    change = theta - theta.detach()  # zero, with the gradient of theta
    codes = v * step - theta.detach() * slope * change
    count = (step - slope * change).sum(1).mean()
    missed: Tensor = count / K - 1
    return error(p, codes) + given.lambda_ * missed.square()


def mp_sae(p: Parts) -> Tensor:
    """Costa et al. 2025: k times, the atom that fits best what is left takes its part of it."""
    atoms = p.parameter("atoms")
    residual = p.centred()
    for _ in range(K):
        correlation = (residual @ atoms.T).relu()
        best = correlation.max(1)
        residual = residual - best.values[:, None] * atoms[best.indices]
    return 0.5 * residual.square().sum(1).mean()


FORMULAS: dict[str, Callable[[Parts], Tensor]] = {
    "relu_sae": relu_sae,
    "topk_sae": topk_sae,
    "batch_topk_sae": batch_topk_sae,
    "matryoshka_sae": matryoshka_sae,
    "gated_sae": gated_sae,
    "p_anneal_sae": p_anneal_sae,
    "jump_relu_sae": jump_relu_sae,
    "mp_sae": mp_sae,
}


def gradients(p: Parts, loss: Tensor) -> dict[str, Tensor]:
    named = p.named()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {name: torch.zeros_like(q) if g is None else g for (name, q), g in pairs}


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradients_are_those_of_the_published_formula(name: str, tmp_path: Path) -> None:
    p = parts(name, tmp_path)
    value, expected = ours(p), FORMULAS[name](p)
    torch.testing.assert_close(value, expected)
    found, by_hand = gradients(p, value), gradients(p, expected)
    moved = {key for key, gradient in by_hand.items() if gradient.abs().sum() > 0}
    assert moved == set(p.named())
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, by_hand[key], msg=key)


ALL = [*FORMULAS]
COUNTED = {"topk_sae", "batch_topk_sae", "matryoshka_sae", "mp_sae"}
WANTED = 8


def wanted(name: str) -> str:
    return f"prox.k={WANTED}" if name in COUNTED else f"prox.target_l0={WANTED}"


QUICK = {"relu_sae", "gated_sae", "matryoshka_sae", "jump_relu_sae"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL]
)
def test_a_tiny_run_explains_more_with_about_as_many_codes_as_wanted(
    name: str, tmp_path: Path, minilm_folder: Path, text_folder: Path
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path, steps=120)
    config = composed(f"experiment={name}", wanted(name), out=tmp_path / "run")
    learner = DictionaryLearner(
        Dictionary(64, 384, bias=config.dictionary.bias, seed=3),
        build(config.prox),
        build(config.inference),
        build(config["update"]),
        build(config.loss),
        max_vectors=data.max_vectors,
        config=plain(config),
    )
    trainer = small_trainer(tmp_path, limit_val_batches=1.0)
    trainer.fit(learner, datamodule=data)
    figures = learner.held_out_figures
    assert figures["val/fvu"] < 0.8
    assert WANTED / 3 < figures["val/l0"] < 2 * WANTED


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_short_run_of_the_main_job_is_sane_and_its_dictionary_loads(
    name: str,
    tmp_path: Path,
    minilm_folder: Path,
    text_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    cli.train(
        [
            f"experiment={name}",
            *("trainer=cpu", "trainer.enable_progress_bar=false"),
            *("transformer=local", f"transformer.path={minilm_folder}"),
            *("text=local", f"text.path={text_folder}"),
            *("max_vectors=60000", "hidden_states.batch_size=512"),
            *("hidden_states.validation_vectors=4096", "dictionary.n_atoms=384"),
            *("hidden_states.layers=[4]", "hydra.run.dir=out"),
        ]
    )
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["val/fvu"] < 0.5
    assert 14 < figures["val/l0"] < 50
    trained = dictlearn.load(tmp_path / "out")
    raw = torch.randn(5, 384)
    codes = trained.encode(raw, layer=4)
    assert codes.shape == (5, 384)
    assert bool((codes >= 0).all())
