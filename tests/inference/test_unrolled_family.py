"""LISTA, LISTA-CP, ALISTA: what the options of the layers are, as dense formulas."""

import pytest
import torch
from torch import Tensor

from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import Ista, Unrolled, duality_gap, infer, training_loss
from dictlearn.inference.starts import AnalyticWeight, analytic_weight
from dictlearn.prox import ElasticNet, Prox, Relu, SignedSoft, Soft, TopK, Weighted
from tests.inference.problems import Problem, dictionary_of, problem


def built(given: Problem, prox: Prox, **options: object) -> tuple[Unrolled, Dictionary]:
    dictionary = dictionary_of(given.atoms)
    encoder = Unrolled(**options)  # type: ignore[arg-type]
    encoder.build(dictionary, prox)
    return encoder, dictionary


def disturbed(encoder: Unrolled, seed: int = 1, by: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(by * noise.to(parameter.dtype))


def same_gradients(ours: Tensor, theirs: Tensor, parameters: list[Tensor]) -> None:
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    target = torch.rand(ours.shape, generator=torch.Generator().manual_seed(3), dtype=ours.dtype)
    pairs = [
        torch.autograd.grad((codes * target).sum(), parameters, None, True, allow_unused=True)
        for codes in (ours, theirs)
    ]
    assert any(gradient is not None and gradient.any() for gradient in pairs[1])
    for our, their in zip(*pairs, strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("weights", ["shared", "untied"])
@pytest.mark.parametrize("synthesis", ["dictionary", "learned"])
def test_lista_is_the_dense_formula_with_matrices_of_its_own(weights: str, synthesis: str) -> None:
    given, prox = problem(), Soft(0.1)
    encoder, dictionary = built(given, prox, n_layers=3, weights=weights, synthesis=synthesis)
    n_matrices = {"shared": 1, "untied": 2}[weights]
    assert len(encoder.syntheses) == (0 if synthesis == "dictionary" else n_matrices)
    disturbed(encoder)
    codes = encoder(given.x, dictionary.atoms, prox).codes.dense()
    a = torch.zeros_like(codes)
    for t in range(3):
        place, before = (t, max(t - 1, 0)) if weights == "untied" else (0, 0)
        b = dictionary.atoms if synthesis == "dictionary" else encoder.syntheses[before]
        step = encoder.log_steps[t].exp()
        v = a + step * (given.x - a @ b) @ encoder.analysis[place].T
        a = torch.relu(v - step * 0.1 * encoder.thresholds[t].exp())
    torch.testing.assert_close(codes, a)
    assert a.any()
    same_gradients(codes, a, [dictionary.atoms, *encoder.parameters()])


@pytest.mark.parametrize("kind", ["lista", "topk"])
def test_a_synthesis_of_its_own_sends_the_atoms_no_gradient(kind: str) -> None:
    given = problem()
    prox: Prox = Soft(0.1) if kind == "lista" else TopK(4)
    encoder, dictionary = built(given, prox, n_layers=3, weights="shared", synthesis="learned")
    codes = encoder(given.x, dictionary.atoms, prox).codes.values
    names = [*encoder.syntheses, dictionary.atoms]
    gradients = torch.autograd.grad(codes.square().sum(), names, allow_unused=True)
    assert gradients[0].any()
    assert gradients[1] is None


PRICED: list[Prox] = [
    Soft(0.1),
    SignedSoft(0.1),
    ElasticNet(0.1, ridge=0.5),
    Weighted(0.1, [0.5 + 0.05 * i for i in range(48)]),
    Relu(),
]


@pytest.mark.parametrize("prox", PRICED, ids=lambda prox: type(prox).__name__)
def test_untrained_layers_are_ista_for_every_convex_penalty(prox: Prox) -> None:
    given = problem()
    encoder, dictionary = built(given, prox, n_layers=5)
    step = encoder.log_steps[0].detach().exp()
    codes = encoder(given.x, dictionary.atoms, prox).codes
    expected = infer(*given, prox, Ista(), tolerance=0, max_steps=5, step_size=step).codes
    torch.testing.assert_close(codes.dense(), expected.dense())
    assert expected.values.any()


def test_thresholds_follow_the_price_of_the_row_and_stay_positive() -> None:
    given, prox = problem(), Soft([0.05, 0.3])
    encoder, dictionary = built(given, prox, n_layers=3)
    disturbed(encoder, by=2.0)
    row = torch.arange(len(given.x)) % 2
    mixed = encoder(given.x, dictionary.atoms, prox.for_layers(row)).codes.dense()
    for layer, price in enumerate((0.05, 0.3)):
        alone = encoder(given.x, dictionary.atoms, Soft(price)).codes.dense()
        torch.testing.assert_close(mixed[row == layer], alone[row == layer])
    nothing = torch.zeros(1, 16, dtype=torch.float64)
    assert not encoder(nothing, dictionary.atoms, Soft(0.3)).codes.values.any()


def test_one_layer_with_weights_of_its_own_has_a_free_bias_as_autoencoders_have() -> None:
    given, prox = problem(), Soft(0.1)
    encoder, dictionary = built(given, prox, n_layers=1, weights="shared", initial_step=1.0)
    with torch.no_grad():
        encoder.thresholds[0].fill_(-0.2)
    codes = encoder(given.x, dictionary.atoms, prox).codes.dense()
    torch.testing.assert_close(codes, torch.relu(given.x @ given.atoms.T + 0.2))


@pytest.mark.parametrize(("m", "d"), [(48, 16), (8, 16)])
def test_the_analytic_matrix_is_the_least_coherent_one(m: int, d: int) -> None:
    atoms = problem(m=m, d=d).atoms
    found = analytic_weight(atoms)
    torch.testing.assert_close((found * atoms).sum(1), torch.ones(m, dtype=torch.float64))
    coherence = (found @ atoms.T).square().sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = found + 0.05 * torch.randn(m, d, generator=generator, dtype=torch.float64)
        other = other / (other * atoms).sum(1, keepdim=True)
        assert (other @ atoms.T).square().sum() >= coherence * (1 - 1e-12)
    if m > d:
        assert coherence < 0.95 * (atoms @ atoms.T).square().sum()


def test_alista_learns_steps_and_thresholds_only_and_follows_the_atoms() -> None:
    given, prox = problem(), Soft(0.1)
    encoder, dictionary = built(given, prox, n_layers=4, weights="analytic")
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {
        "log_steps",
        "thresholds",
    }
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                dictionary.atoms.copy_(problem(seed=4).atoms)
        codes = encoder(given.x, dictionary.atoms, prox).codes.dense()
        a, weight = torch.zeros_like(codes), analytic_weight(dictionary.atoms)
        for t in range(4):
            step = encoder.log_steps[t].exp()
            v = a + step * (given.x - a @ dictionary.atoms) @ weight.T
            a = torch.relu(v - step * 0.1 * encoder.thresholds[t].exp())
        torch.testing.assert_close(codes, a)
        same_gradients(codes, a, [dictionary.atoms, *encoder.parameters()])


def test_untrained_alista_comes_closer_to_the_optimum_than_it_started() -> None:
    given, prox = problem(), Soft(0.1)
    encoder, dictionary = built(given, prox, n_layers=60, weights="analytic")
    codes = encoder(given.x, dictionary.atoms, prox).codes
    assert codes.values.isfinite().all()
    error = (given.x - dictionary.decode(codes)).square().sum()
    assert error < 0.5 * given.x.square().sum()
    assert duality_gap(given.x, codes, given.atoms, prox).mean() < 0.5


def test_the_analytic_matrix_is_computed_once_for_atoms_that_stay() -> None:
    weights, atoms = AnalyticWeight(), problem().atoms.clone()
    first = weights(atoms)
    assert weights(atoms.detach()) is first
    atoms.mul_(2)
    second = weights(atoms)
    assert second is not first
    torch.testing.assert_close(second, analytic_weight(atoms))
    assert weights(problem(seed=1).atoms) is not second
    with torch.inference_mode():
        torch.testing.assert_close(weights(problem().atoms * 1.0), first)


@pytest.mark.parametrize("weights", ["tied", "shared", "analytic"])
def test_training_on_a_fixed_dictionary_comes_closer_to_the_optimum(weights: str) -> None:
    given, prox = problem(n=256), Soft(0.05)
    encoder, dictionary = built(given, prox, n_layers=3, weights=weights)
    best = infer(*given, prox, tolerance=1e-8, max_steps=5000).codes

    def suboptimality() -> Tensor:
        codes = encoder(given.x, given.atoms, prox).codes
        reached = training_loss(given.x, dictionary.decode(codes), codes, prox)
        least = training_loss(given.x, dictionary.decode(best), best, prox)
        return reached / least - 1

    before = float(suboptimality().detach())
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.03)
    for _ in range(100):
        loss = suboptimality()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert 0 < float(suboptimality().detach()) < 0.5 * before


def test_scores_are_the_first_layers_pre_activations_also_of_some_atoms() -> None:
    given, indices = problem(), torch.tensor([5, 0, 30])
    cases: list[tuple[Prox, str, float]] = [
        (TopK(4), "tied", 0.0),
        (Soft(0.1), "shared", 0.1),
        (TopK(4), "analytic", 0.0),
    ]
    for prox, weights, price in cases:
        encoder, dictionary = built(given, prox, n_layers=2, weights=weights)
        disturbed(encoder)
        step, bias = encoder.log_steps[0].exp(), encoder.thresholds[0]
        matrix = {"tied": dictionary.atoms, "analytic": analytic_weight(given.atoms)}
        weight = matrix[weights] if weights in matrix else encoder.analysis[0]
        threshold = bias if price == 0 else step * price * bias.exp()
        expected = step * given.x @ weight.T - threshold
        torch.testing.assert_close(encoder.scores(given.x, dictionary.atoms), expected)
        some = encoder.scores(given.x, dictionary.atoms, indices)
        torch.testing.assert_close(some, expected[:, indices])
        gradient = torch.autograd.grad(some.sum(), encoder.thresholds[0])[0]
        assert gradient.nonzero()[:, 0].tolist() == sorted(indices.tolist())


def test_mistakes_of_the_family_are_told_by_their_key() -> None:
    with pytest.raises(InputError, match=r"inference\.synthesis=dict .*'dictionary'"):
        Unrolled(2, synthesis="dict")
    with pytest.raises(InputError, match=r"inference\.thresholds"):
        Unrolled(2, thresholds="free")
    with pytest.raises(InputError, match=r"inference\.momentum=true combines"):
        Unrolled(2, weights="untied", synthesis="learned", momentum=True)
    with pytest.raises(InputError, match=r"inference\.selection"):
        Unrolled(2, selection="rough")
    with pytest.raises(InputError, match=r"inference\.engine"):
        Unrolled(2, engine="gpu")
