"""Unrolled layers: solver steps before training, autoencoders at one layer, learned after."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import (
    Fista,
    Ista,
    Unrolled,
    duality_gap,
    exact_largest_eigenvalue,
    infer,
    training_loss,
)
from dictlearn.prox import Prox, Relu, Soft, TopK
from tests.inference.problems import Problem, dictionary_of, problem

WEIGHTS = ["tied", "shared", "untied"]


def built(
    given: Problem, prox: Prox, *args: object, **kwargs: object
) -> tuple[Unrolled, Dictionary]:
    dictionary = dictionary_of(given.atoms)
    encoder = Unrolled(*args, **kwargs)  # type: ignore[arg-type]
    encoder.build(dictionary, prox)
    return encoder, dictionary


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("prox", [Soft(0.1), Relu()])
@pytest.mark.parametrize("n_layers", [1, 2, 16])
def test_untrained_layers_are_solver_steps(
    weights: str, momentum: bool, prox: Prox, n_layers: int
) -> None:
    given = problem()
    encoder, dictionary = built(given, prox, n_layers, weights, momentum)
    codes = encoder(given.x, dictionary.atoms, prox).codes
    solver = Fista(restart=False) if momentum else Ista()
    step = 1 / exact_largest_eigenvalue(given.atoms)
    expected = infer(*given, prox, solver, tolerance=0, max_steps=n_layers, step_size=step).codes
    torch.testing.assert_close(codes.values, expected.values, rtol=0, atol=1e-13)
    assert expected.values.any()


def test_layers_go_on_from_given_codes() -> None:
    given, prox = problem(), Soft(0.1)
    encoder, dictionary = built(given, prox, 3)
    first = encoder(given.x, dictionary.atoms, prox).codes
    second = encoder(given.x, dictionary.atoms, prox, initial=first).codes
    six, _ = built(given, prox, 6)
    torch.testing.assert_close(second.values, six(given.x, dictionary.atoms, prox).codes.values)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_topk_layers_are_the_dense_formula(weights: str, momentum: bool, warm: bool) -> None:
    given, prox = problem(), TopK(4)
    encoder, dictionary = built(given, prox, 3, weights, momentum)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    start = TopK(5)(given.x @ given.atoms.T, 0.3) if warm else None
    sparse = encoder(given.x, dictionary.atoms, prox, initial=start).codes

    atoms = dictionary.atoms
    a = before = torch.zeros(24, 48, dtype=torch.float64) if start is None else start.dense()
    for t in range(3):
        y = a + encoder.betas[t - 1] * (a - before) if momentum and t > 0 else a
        w = atoms if weights == "tied" else encoder.analysis[t if weights == "untied" else 0]
        v = y + encoder.log_steps[t].exp() * (given.x - y @ atoms) @ w.T - encoder.thresholds[t]
        kept = torch.zeros_like(v).scatter(1, v.topk(4, dim=1).indices, 1.0)
        before, a = a, torch.relu(v) * kept
    torch.testing.assert_close(sparse.dense(), a)

    target = torch.rand(a.shape, generator=generator, dtype=a.dtype)
    parameters = [atoms, *encoder.parameters()]
    ours = torch.autograd.grad((sparse.dense() * target).sum(), parameters)
    dense = torch.autograd.grad((a * target).sum(), parameters)
    for our, their in zip(ours, dense, strict=True):
        torch.testing.assert_close(our, their)


class TopKAutoencoder(nn.Module):
    """The plain form: z = TopK(relu(W x + b)), x_hat = z D (Gao et al. 2024, without b_pre)."""

    def __init__(self, atoms: Tensor, k: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Parameter(atoms.clone()), nn.Parameter(atoms.clone())
        self.bias, self.k = nn.Parameter(atoms.new_zeros(len(atoms))), k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = torch.relu(x @ self.encoder.T + self.bias).topk(self.k, dim=-1)
        z = torch.zeros(len(x), len(self.bias), dtype=x.dtype).scatter(1, indices, values)
        return z, z @ self.decoder


def test_one_topk_layer_with_its_own_weights_is_the_topk_autoencoder() -> None:
    given, prox = problem(), TopK(4)
    encoder, dictionary = built(given, prox, 1, "shared", initial_step=1.0)
    plain = TopKAutoencoder(given.atoms, 4)
    z, x_hat = plain(given.x)
    codes = encoder(given.x, dictionary.atoms, prox).codes
    torch.testing.assert_close(codes.dense(), z)
    loss = training_loss(given.x, dictionary.decode(codes), codes, prox)
    torch.testing.assert_close(loss, 0.5 * (given.x - x_hat).square().sum(1).mean())
    loss.backward()  # type: ignore[no-untyped-call]
    (0.5 * (given.x - x_hat).square().sum(1).mean()).backward()
    pairs = (
        (dictionary.atoms, plain.decoder, 1),
        (encoder.analysis[0], plain.encoder, 1),
        (encoder.thresholds[0], plain.bias, -1),
    )
    for ours, theirs, sign in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert theirs.grad.any()
        torch.testing.assert_close(ours.grad, sign * theirs.grad)


def test_one_relu_layer_with_its_own_weights_is_the_relu_autoencoder() -> None:
    given, prox = problem(), Relu()
    encoder, dictionary = built(given, prox, 1, "shared", initial_step=1.0)
    with torch.no_grad():
        encoder.thresholds[0] += 0.1
    codes = encoder(given.x, dictionary.atoms, prox).codes
    torch.testing.assert_close(codes.values, torch.relu(given.x @ given.atoms.T - 0.1))


GRADIENT_CASES = list(product(WEIGHTS, [False, True], [Soft(0.05), TopK(4)]))


@pytest.mark.parametrize(("weights", "momentum", "prox"), GRADIENT_CASES)
def test_gradients_reach_every_learned_part(weights: str, momentum: bool, prox: Prox) -> None:
    given = problem()
    encoder, dictionary = built(given, prox, 3, weights, momentum)
    codes = encoder(given.x, dictionary.atoms, prox).codes
    training_loss(given.x, dictionary.decode(codes), codes, prox).backward()  # type: ignore[no-untyped-call]
    names = {name for name, _ in encoder.named_parameters()}
    n_weights = {"tied": 0, "shared": 1, "untied": 3}[weights]
    expected = {f"log_steps.{t}" for t in range(3)} | {f"thresholds.{t}" for t in range(3)}
    expected |= {f"analysis.{t}" for t in range(n_weights)}
    expected |= {f"betas.{t}" for t in range(2)} if momentum else set()
    assert names == expected
    for name, parameter in [*encoder.named_parameters(), ("atoms", dictionary.atoms)]:
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


def test_one_layer_codes_move_the_atoms_only_when_the_atoms_encode() -> None:
    given, prox = problem(), TopK(4)
    for weights in WEIGHTS:
        encoder, dictionary = built(given, prox, 1, weights)
        codes = encoder(given.x, dictionary.atoms, prox).codes
        (gradient,) = torch.autograd.grad(codes.values.sum(), dictionary.atoms, allow_unused=True)
        assert (gradient is not None) == (weights == "tied")


@pytest.mark.parametrize("prox", [Soft(0.05), TopK(4)])
def test_training_lowers_the_loss_below_that_of_the_untrained_layers(prox: Prox) -> None:
    given = problem(n=256)
    encoder, dictionary = built(given, prox, 2)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.04)
    losses = []
    for _ in range(60):
        codes = encoder(given.x, dictionary.atoms.detach(), prox).codes
        loss = training_loss(given.x, codes.dense() @ given.atoms, codes, prox)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_first_steps_follow_the_option_and_the_sparsity() -> None:
    given = problem()
    bound = float(exact_largest_eigenvalue(given.atoms))
    cases: list[tuple[Prox, int, str | float, float]] = [
        (Soft(0.1), 3, "auto", 1 / bound),
        (TopK(4), 3, "lipschitz", 1 / bound),
        (Soft(0.1), 2, 0.25, 0.25),
    ]
    for prox, n_layers, option, step in cases:
        for thresholds, factor in (("auto", 0.0), ("bias", 1.0)):
            encoder, _ = built(given, prox, n_layers, initial_step=option, thresholds=thresholds)
            for log_step, threshold in zip(encoder.log_steps, encoder.thresholds, strict=True):
                assert float(log_step.detach().exp()) == pytest.approx(step)
                start = factor * step * getattr(prox, "lambda_", 0.0)
                assert threshold.detach().tolist() == pytest.approx([start] * 48)


@pytest.mark.parametrize(("n_layers", "step"), [(1, 1.0), (3, 0.7)])
def test_layers_of_spread_atoms_start_with_full_steps(n_layers: int, step: float) -> None:
    encoder = Unrolled(n_layers)
    encoder.build(Dictionary(64, 256), TopK(4))
    for log_step in encoder.log_steps:
        assert float(log_step.detach().exp()) == pytest.approx(step)


def test_the_first_layer_lowers_the_error_also_of_atoms_that_are_alike() -> None:
    torch.manual_seed(0)
    alike = torch.nn.functional.normalize(torch.randn(16) + 0.2 * torch.randn(64, 16), dim=1)
    dictionary = Dictionary(64, 16)
    with torch.no_grad():
        dictionary.atoms.copy_(alike)
    encoder = Unrolled(2)
    encoder.build(dictionary, TopK(8))
    assert float(encoder.log_steps[0].detach().exp()) < 0.2
    x = alike[:20]
    with torch.no_grad():
        left = x - dictionary.decode(encoder(x, dictionary.atoms, TopK(8)).codes)
    assert float(left.square().sum()) < 0.2 * float(x.square().sum())


def test_reset_follows_the_dictionary_and_single_atoms_follow_their_replacement() -> None:
    given, prox = problem(), Soft(0.1)
    encoder, dictionary = built(given, prox, 2, "untied")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3)
        dictionary.atoms.copy_(problem(seed=5).atoms)
    indices = torch.tensor([3, 11])
    changed = encoder.analysis[1].detach().clone()
    encoder.reset_atoms(dictionary, indices)
    changed[indices] = dictionary.atoms.detach()[indices]
    assert torch.equal(encoder.analysis[1], changed)
    assert encoder.thresholds[0][3] != encoder.thresholds[0][4]
    encoder.reset(dictionary)
    fresh, _ = built(problem(seed=5), prox, 2, "untied")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_the_gap_is_computed_when_asked_for() -> None:
    given, prox = problem(), TopK(4)
    encoder, dictionary = built(given, prox, 2)
    plain = encoder(given.x, dictionary.atoms, prox)
    assert plain.gap.isinf().all()
    assert plain.steps == 2
    asked = encoder(given.x, dictionary.atoms, prox, certify=True)
    expected = duality_gap(given.x, plain.codes, given.atoms, prox)
    torch.testing.assert_close(asked.gap, expected)
    assert not asked.converged.any()


def test_the_state_comes_back_from_a_file(tmp_path: object) -> None:
    given, prox = problem(), TopK(4)
    encoder, dictionary = built(given, prox, 2, "shared", True)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01)
    path = f"{tmp_path}/state.pt"
    torch.save(encoder.state_dict(), path)
    other, _ = built(given, prox, 2, "shared", True)
    other.load_state_dict(torch.load(path, weights_only=True))
    ours, theirs = (e(given.x, dictionary.atoms, prox).codes.dense() for e in (encoder, other))
    assert torch.equal(ours, theirs)


def test_sparse_codes_are_kept_as_values_and_indices() -> None:
    given, prox = problem(), TopK(4)
    encoder, dictionary = built(given, prox, 2)
    codes: Codes = encoder(given.x, dictionary.atoms, prox).codes
    assert codes.indices is not None
    assert codes.values.shape == codes.indices.shape == (24, 4)


def test_mistakes_are_told_by_their_key() -> None:
    with pytest.raises(InputError, match=r"inference\.n_layers"):
        Unrolled(0)
    with pytest.raises(InputError, match=r"inference\.weights=tie .*Did you mean 'tied'"):
        Unrolled(2, "tie")
    for wrong in ("fast", 0.0, -1.0):
        with pytest.raises(InputError, match=r"inference\.initial_step"):
            Unrolled(2, initial_step=wrong)
    with pytest.raises(InputError, match=r"prox\.k=49"):
        built(problem(), TopK(49))
