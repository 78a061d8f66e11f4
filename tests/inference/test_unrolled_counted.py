"""Layers whose codes are counted: top-k with k at will, batch top-k, JumpReLU."""

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import Unrolled, training_loss
from dictlearn.inference.merging import packed
from dictlearn.inference.sparsify import Cut
from dictlearn.prox import BatchTopK, Jump, Moment, Prox, Soft, TopK
from tests.inference.problems import dictionary_of, problem
from tests.inference.test_unrolled_family import built, disturbed, same_gradients


def trained(
    prox: Prox, steps: int, lr: float = 0.01, **options: object
) -> tuple[Unrolled, Dictionary, list[float]]:
    """Train on endless rows that are sparse in known atoms; return the L0 of every step."""
    world = problem(n=1)
    dictionary = dictionary_of(world.atoms)
    encoder = Unrolled(**options)  # type: ignore[arg-type]
    encoder.build(dictionary, prox)
    encoder.train()
    optimizer = torch.optim.Adam([*encoder.parameters(), dictionary.atoms], lr=lr)
    counts = []
    for step in range(steps):
        x = rows(step)
        now = prox.at(Moment(step / steps, 0, step))
        solution = encoder(x, dictionary.atoms, now)
        loss = training_loss(x, dictionary.decode(solution.codes), solution.codes, now)
        if solution.extra_loss is not None:
            loss = loss + solution.extra_loss.mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        dictionary.renormalize_()
        counts.append(float(solution.codes.l0().double().mean()))
    encoder.eval()
    return encoder, dictionary, counts


def rows(seed: int, n: int = 256) -> Tensor:
    world = problem(n=1)
    g = torch.Generator().manual_seed(1000 + seed)
    codes = torch.rand(n, 48, generator=g, dtype=torch.float64)
    codes *= torch.rand(n, 48, generator=g, dtype=torch.float64) < 5 / 48
    noise = 0.05 * torch.randn(n, 16, generator=g, dtype=torch.float64)
    return codes @ world.atoms + noise


def dense_batch_topk(v: Tensor, k: int) -> Tensor:
    flat = torch.relu(v).flatten()
    mask = torch.zeros_like(flat).index_fill(0, flat.topk(len(v) * k).indices, 1.0)
    return (flat * mask).view_as(v)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("momentum", [False, True])
def test_batch_topk_layers_are_the_dense_formula_in_training(n_layers: int, momentum: bool) -> None:
    given, prox = problem(), BatchTopK(4)
    encoder, dictionary = built(given, prox, n_layers=n_layers, momentum=momentum)
    disturbed(encoder)
    encoder.train()
    codes = encoder(given.x, dictionary.atoms, prox).codes
    assert codes.indices is not None
    assert int((codes.values > 0).sum()) == 24 * 4
    assert len(set(codes.l0().tolist())) > 1
    a = before = torch.zeros(24, 48, dtype=torch.float64)
    for t in range(n_layers):
        y = a + encoder.betas[t - 1] * (a - before) if momentum and t > 0 else a
        residual = given.x - y @ dictionary.atoms
        v = y + encoder.log_steps[t].exp() * residual @ dictionary.atoms.T - encoder.thresholds[t]
        if t == n_layers - 1:
            before, a = a, dense_batch_topk(v, 4)
        else:
            kept = torch.zeros_like(v).scatter(1, v.topk(4, dim=1).indices, 1.0)
            before, a = a, torch.relu(v) * kept
    torch.testing.assert_close(codes.dense(), a)
    same_gradients(codes.dense(), a, [dictionary.atoms, *encoder.parameters()])


@pytest.mark.parametrize("candidates", [None, 12])
def test_batch_topk_keeps_its_l0_on_held_out_rows_which_do_not_depend_on_each_other(
    candidates: int | None,
) -> None:
    prox = BatchTopK(5)
    encoder, dictionary, _ = trained(prox, 150, n_layers=2, n_candidates=candidates)
    x = rows(-1, 2000)
    codes = encoder(x, dictionary.atoms, prox).codes
    assert float(codes.l0().double().mean()) == pytest.approx(5, rel=0.05)
    assert codes.l0().double().std() > 0.5
    alone = encoder(x[7:8], dictionary.atoms, prox).codes
    torch.testing.assert_close(alone.dense(), codes.dense()[7:8])


def test_the_cut_is_the_running_mean_of_the_smallest_code_kept() -> None:
    cut = Cut()
    assert not cut.known
    expected = None
    for least in (0.5, 0.3, 0.4):
        cut.observe(Codes(torch.tensor([[least, 0.0], [0.9, 1.0]]), torch.tensor([[0, 1]] * 2), 3))
        expected = least if expected is None else 0.95 * expected + 0.05 * least
        assert float(cut.value) == pytest.approx(expected)
    cut.observe(Codes(torch.zeros(2, 2), torch.tensor([[0, 1]] * 2), 3))
    assert float(cut.value) == pytest.approx(0.95 * (expected or 0.0))
    cut.forget()
    assert not cut.known


def test_without_a_cut_for_this_k_every_row_keeps_k() -> None:
    given, prox = problem(), BatchTopK(4)
    encoder, dictionary = built(given, prox, n_layers=2)
    encoder.eval()
    expected = Unrolled(2)
    expected.build(dictionary, TopK(4))
    codes = encoder(given.x, dictionary.atoms, prox).codes
    torch.testing.assert_close(
        codes.dense(), expected(given.x, dictionary.atoms, TopK(4)).codes.dense()
    )
    encoder.train()(given.x, dictionary.atoms, prox)
    encoder.eval()
    assert encoder(given.x, dictionary.atoms, BatchTopK(2)).codes.l0().amax() <= 2


def test_the_cut_is_saved_and_forgotten_with_the_encoder() -> None:
    given, prox = problem(), BatchTopK(4)
    encoder, dictionary = built(given, prox, n_layers=2)
    encoder.train()(given.x, dictionary.atoms, prox)
    other, _ = built(given, prox, n_layers=2)
    other.load_state_dict(encoder.state_dict())
    codes = [e.eval()(given.x, dictionary.atoms, prox).codes.dense() for e in (encoder, other)]
    assert torch.equal(*codes)
    encoder.reset(dictionary)
    assert encoder.cut is not None
    assert not encoder.cut.known


def test_packing_keeps_the_chosen_entries_and_nothing_else() -> None:
    values = torch.tensor([[0.5, 0.2, 0.9, 0.7], [0.1, 0.3, 0.2, 0.8]])
    codes = Codes(values, torch.tensor([[4, 1, 0, 5], [2, 3, 5, 0]]), 6)
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]])
    found = packed(codes, mask)
    assert found.values.shape == (2, 2)
    assert found.dense().tolist() == Codes(values * mask, codes.indices, 6).dense().tolist()
    assert packed(codes, torch.ones_like(mask)).dense().tolist() == codes.dense().tolist()
    assert packed(codes, torch.zeros_like(mask)).dense().sum() == 0


def test_an_encoder_trained_with_sampled_k_serves_more_than_one_k() -> None:
    sampled = TopK(4, sampled=[2, 16])
    nested, atoms, counts = trained(sampled, 200, n_layers=3)
    assert max(counts) > 10
    fixed, others, _ = trained(TopK(4), 200, n_layers=3)
    x = rows(-1, 1000)
    for slopes in (nested.step_slopes, nested.threshold_slopes):
        assert all(bool(slope != 0) for slope in slopes)

    def error(encoder: Unrolled, dictionary: Dictionary, k: int) -> float:
        codes = encoder(x, dictionary.atoms, TopK(k)).codes
        return float((x - dictionary.decode(codes)).square().sum() / x.square().sum())

    assert error(nested, atoms, 12) < 0.8 * error(fixed, others, 12)
    found = [error(nested, atoms, k) for k in (2, 4, 8, 12)]
    assert found == sorted(found, reverse=True)


def test_steps_and_thresholds_depend_on_log_k_where_k_is_sampled() -> None:
    given = problem()
    encoder, dictionary = built(given, TopK(4, sampled=[2, 8]), n_layers=1)
    with torch.no_grad():
        encoder.step_slopes[0].fill_(0.5)
        encoder.threshold_slopes[0].fill_(0.02)
    step = float(encoder.log_steps[0].detach().exp())
    for k in (2, 4, 8):
        v = step * (k / 4) ** 0.5 * given.x @ given.atoms.T
        v -= 0.02 * torch.log(torch.tensor(k / 4, dtype=torch.float64))
        expected = TopK(k)(v, 0.0).dense()
        found = encoder(given.x, dictionary.atoms, TopK(k)).codes.dense()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def transcribed_jump(v: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return JumpReLU and its count, with the published pseudo-gradients for the thresholds."""
    window = ((v - theta).abs() < bandwidth / 2).to(v.dtype)
    step = (v > theta).to(v.dtype)
    moved = theta - theta.detach()
    a = v * step - moved * (theta.detach() / bandwidth * window.detach())
    return a, (step - moved * window.detach() / bandwidth).sum(1)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("target", [None, 3.0])
def test_jump_layers_are_the_published_formula(n_layers: int, target: float | None) -> None:
    given, prox = problem(), Jump(0.02, bandwidth=0.3, target_l0=target)
    encoder, dictionary = built(given, prox, n_layers=n_layers)
    encoder.train()
    encoder(given.x, dictionary.atoms, prox)  # to which the scale is fitted, before factors move
    disturbed(encoder, by=0.03)
    assert encoder.jumps is not None
    solution = encoder(given.x, dictionary.atoms, prox)
    a = torch.zeros(24, 48, dtype=torch.float64)
    count = a.sum(1)
    for t in range(n_layers):
        residual = given.x - a @ dictionary.atoms
        v = a + encoder.log_steps[t].exp() * residual @ dictionary.atoms.T - encoder.thresholds[t]
        a, count = transcribed_jump(v, encoder.jumps.threshold(t), 0.3)
    torch.testing.assert_close(solution.codes.dense(), a)
    same_gradients(solution.codes.dense(), a, [dictionary.atoms, *encoder.parameters()])
    extra = 0.02 * (count if target is None else (count.mean() / target - 1).square().expand(24))
    assert solution.extra_loss is not None
    if target is None:
        assert not solution.extra_loss.any()
        torch.testing.assert_close(prox.value(solution.codes), extra)
    else:
        torch.testing.assert_close(solution.extra_loss, extra)
    factors = list(encoder.jumps.factors)
    ours = torch.autograd.grad(solution.extra_loss.mean(), factors, allow_unused=True)
    theirs = torch.autograd.grad(extra.mean(), factors, allow_unused=True)
    assert theirs[-1].any()
    torch.testing.assert_close(ours[-1], theirs[-1])


@pytest.mark.parametrize("n_layers", [1, 2])
def test_jump_reaches_the_l0_that_is_wanted(n_layers: int) -> None:
    prox = Jump(1.0, bandwidth=0.1, target_l0=5)
    encoder, dictionary, counts = trained(prox, 200, n_layers=n_layers)
    assert counts[0] == pytest.approx(5, rel=0.02)
    codes = encoder(rows(-1, 2000), dictionary.atoms, prox).codes
    assert float(codes.l0().double().mean()) == pytest.approx(5, rel=0.1)


def test_jump_finds_another_l0_when_the_target_moves() -> None:
    """What is learned are the thresholds: they are not only set by the first batch."""
    prox = Jump(10.0, bandwidth=0.1, target_l0=5)
    encoder, dictionary, _ = trained(prox, 10)
    encoder.train()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    wanted = Jump(10.0, bandwidth=0.1, target_l0=2.5)
    for step in range(100):
        x = rows(step)
        solution = encoder(x, dictionary.atoms.detach(), wanted)
        loss = training_loss(x, solution.codes.dense() @ dictionary.atoms, solution.codes, wanted)
        optimizer.zero_grad()
        (loss + solution.extra_loss.mean()).backward()
        optimizer.step()
    codes = encoder.eval()(rows(-1, 1000), dictionary.atoms, wanted).codes
    assert float(codes.l0().double().mean()) == pytest.approx(2.5, rel=0.1)


def test_without_a_target_thresholds_start_where_a_code_saves_its_price() -> None:
    given, prox = problem(), Jump(0.02)
    encoder, dictionary = built(given, prox, n_layers=1, initial_step=1.0)
    codes = encoder.eval()(given.x, dictionary.atoms, prox).codes.dense()
    v = given.x @ given.atoms.T
    torch.testing.assert_close(codes, torch.where(0.5 * v.square() > 0.02, v, 0.0).clamp_min(0))


def test_jump_at_use_is_jump_in_training() -> None:
    given, prox = problem(), Jump(0.02, target_l0=4)
    encoder, dictionary = built(given, prox, n_layers=2)
    training = encoder.train()(given.x, dictionary.atoms, prox).codes
    use = encoder.eval()(given.x, dictionary.atoms, prox)
    torch.testing.assert_close(use.codes.dense(), training.dense())
    assert use.extra_loss is None


def test_replaced_atoms_get_their_first_thresholds_of_jump_back() -> None:
    given, prox = problem(), Jump(0.02, target_l0=4)
    encoder, dictionary = built(given, prox, n_layers=2, weights="untied", synthesis="learned")
    encoder.train()(given.x, dictionary.atoms, prox)
    disturbed(encoder)
    assert encoder.jumps is not None
    encoder.reset_atoms(dictionary, torch.tensor([3, 11]))
    for t in range(2):
        threshold = encoder.jumps.threshold(t)
        assert threshold[3] == threshold[11] == encoder.jumps.scales[t]
        assert threshold[4] != threshold[3]
    for matrix in (*encoder.analysis, *encoder.syntheses):
        assert torch.equal(matrix[3], dictionary.atoms[3])
        assert not torch.equal(matrix[4], dictionary.atoms[4])


def test_an_encoder_of_another_sparsity_has_no_thresholds_for_jump() -> None:
    given = problem()
    encoder, dictionary = built(given, TopK(4), n_layers=2)
    with pytest.raises(InputError, match=r"prox=jump needs thresholds"):
        encoder(given.x, dictionary.atoms, Jump(0.02))


def test_an_encoder_trained_with_a_price_can_keep_k_codes_at_use() -> None:
    given = problem()
    encoder, dictionary = built(given, Soft(0.1), n_layers=3)
    codes = encoder(given.x, dictionary.atoms, TopK(3)).codes
    step = encoder.log_steps[0].detach().exp()
    a = torch.zeros(24, 48, dtype=torch.float64)
    for _ in range(3):
        v = a + step * (given.x - a @ given.atoms) @ given.atoms.T
        a = TopK(3)(v, step * 0.1).dense()
    torch.testing.assert_close(codes.dense(), a)
