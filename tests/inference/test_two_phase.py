"""A run that begins with a learned encoder and goes on with exact codes."""

from __future__ import annotations

import pytest
import torch

from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import (
    ExchangePursuit,
    OrthogonalMatchingPursuit,
    Solution,
    TwoPhase,
    Unrolled,
    WorkingSet,
    duality_gap,
    objective,
)
from dictlearn.prox import BatchTopK, Jump, Prox, Soft, TopK
from tests.inference.problems import Problem, dictionary_of, problem

K = 4


def two_phase(
    distil: str = "objective", share: float = 0.5, use_share: float = 0.2, every: int = 1
) -> TwoPhase:
    return TwoPhase(
        Unrolled(n_layers=2),
        WorkingSet(tolerance=1e-4),
        OrthogonalMatchingPursuit(),
        encoder_share=share,
        use_share=use_share,
        distil=distil,
        distil_every=every,
    )


def built(
    inference: TwoPhase, prox: Prox | None = None
) -> tuple[TwoPhase, Problem, Dictionary, Prox]:
    made = problem(n=64, dtype=torch.float32)
    dictionary = dictionary_of(made.atoms)
    prox = TopK(K) if prox is None else prox
    inference.build(dictionary, prox)
    inference.reset(dictionary)
    return inference.train(), made, dictionary, prox


def test_the_first_phase_is_the_encoders_and_the_second_exact() -> None:
    inference, made, dictionary, prox = built(two_phase())
    inference.advance(0.49)
    first: Solution = inference(made.x, dictionary.atoms, prox)
    assert first.codes.values.requires_grad
    assert first.extra_loss is None
    inference.advance(0.5)
    second: Solution = inference(made.x, dictionary.atoms, prox)
    assert not second.codes.values.requires_grad
    assert inference.price is not None
    price = Soft(float(inference.price.lambda_))
    assert duality_gap(made.x, second.codes, dictionary.atoms, price).max() <= 2e-4


def test_exact_codes_begin_at_the_wanted_l0_and_are_held_there() -> None:
    inference, made, dictionary, prox = built(two_phase(distil="none", share=0.0))
    inference.advance(0.0)
    for step in range(40):
        solution: Solution = inference(made.x, dictionary.atoms, prox)
        l0 = solution.codes.l0().float().mean()
        if step == 0:
            assert abs(float(l0) - 2 * K) < 0.25 * K
            assert inference.price is not None
            inference.price.lambda_ *= 3  # an atom moved: far too few codes now
        inference.observe(l0)
    assert abs(float(l0) - 2 * K) < 0.25 * K


def test_the_last_phase_shares_codes_out_at_a_price_that_use_keeps() -> None:
    inference = TwoPhase(
        Unrolled(n_layers=1), WorkingSet(), ExchangePursuit(), encoder_share=0.2, use_share=0.2
    )
    inference, made, dictionary, prox = built(inference, BatchTopK(K))
    use = inference.use
    assert isinstance(use, ExchangePursuit)
    for fraction, l0, known in ((0.0, K, False), (0.3, 2 * K, False), (0.9, K, True)):
        inference.advance(fraction)
        solution: Solution = inference(made.x, dictionary.atoms, prox)
        found = solution.codes.l0().float().mean()
        inference.observe(found)
        assert abs(float(found) - l0) < 0.1 * l0
        assert (use.known_price is not None) == known
    before = use.known_price
    inference.observe(torch.tensor(2.0 * K))  # now the price of codes is steered, not lambda
    assert use.known_price is not None
    assert before is not None
    assert use.known_price > before
    after: Solution = inference.eval()(made.x, dictionary.atoms, prox)
    assert len(set(after.codes.l0().tolist())) > 2


def test_codes_that_are_shared_out_need_a_last_phase() -> None:
    with pytest.raises(InputError, match=r"use_share=0.*prox=topk"):
        built(two_phase(use_share=0.0), BatchTopK(K))


@pytest.mark.parametrize("distil", ["objective", "codes", "none"])
def test_the_lesson_of_the_second_phase_moves_the_encoder_and_never_the_atoms(distil: str) -> None:
    inference, made, dictionary, prox = built(two_phase(distil, share=0.0))
    inference.advance(0.0)
    solution: Solution = inference(made.x, dictionary.atoms, prox)
    if distil == "none":
        assert solution.extra_loss is not None
        assert not solution.extra_loss.any()
        return
    assert solution.extra_loss is not None
    assert solution.extra_loss.shape == (64,)
    solution.extra_loss.mean().backward()  # type: ignore[no-untyped-call]
    assert dictionary.atoms.grad is None
    gradients = [p.grad for p in inference.encoder.parameters() if p.grad is not None]
    assert max(float(g.abs().max()) for g in gradients) > 0


def test_the_lesson_is_the_encoders_objective_or_its_distance_from_the_exact_codes() -> None:
    for distil in ("objective", "codes"):
        inference, made, dictionary, prox = built(two_phase(distil, share=0.0))
        inference.advance(0.0)
        solution: Solution = inference(made.x, dictionary.atoms, prox)
        learned = inference.encoder(made.x, dictionary.atoms, prox).codes.dense()
        if distil == "codes":
            expected = 0.5 * (learned - solution.codes.dense()).square().sum(1)
        else:
            expected = 0.5 * (made.x - learned @ dictionary.atoms).square().sum(1)
        assert solution.extra_loss is not None
        torch.testing.assert_close(solution.extra_loss, expected)


def test_new_vectors_are_coded_by_the_encoder_until_there_are_exact_codes() -> None:
    inference, made, dictionary, prox = built(two_phase())
    inference.advance(0.2)
    before: Solution = inference.eval()(made.x, dictionary.atoms, prox)
    by_encoder: Solution = inference.encoder(made.x, dictionary.atoms, prox)
    assert torch.equal(before.codes.dense(), by_encoder.codes.dense())
    inference.train().advance(0.7)
    after: Solution = inference.eval()(made.x, dictionary.atoms, prox)
    by_pursuit: Solution = inference.use(made.x, dictionary.atoms, prox)
    assert torch.equal(after.codes.dense(), by_pursuit.codes.dense())
    assert not torch.equal(after.codes.dense(), before.codes.dense())


def test_phase_and_price_survive_a_checkpoint() -> None:
    inference, made, dictionary, prox = built(two_phase(distil="none"))
    inference.advance(0.6)
    inference(made.x, dictionary.atoms, prox)
    inference.observe(torch.tensor(30.0))
    assert inference.price is not None
    wanted = inference.price.lambda_.clone()
    again, *_ = built(two_phase(distil="none"))
    again.load_state_dict(inference.state_dict())
    again.advance(0.6)
    again(made.x, dictionary.atoms, prox)
    assert again.price is not None
    assert torch.equal(again.price.lambda_, wanted)
    assert bool(again.in_second)


def test_the_schedule_has_a_boundary_only_between_two_phases() -> None:
    assert two_phase(share=0.3).boundaries == (0.3,)
    assert two_phase(share=0.0).boundaries == ()
    assert two_phase(share=1.0, use_share=0.0).boundaries == ()


def test_with_a_convex_sparsity_all_parts_solve_one_problem() -> None:
    inference = TwoPhase(
        Unrolled(n_layers=3, initial_step="lipschitz"),
        WorkingSet(tolerance=1e-4),
        WorkingSet(tolerance=1e-4),
        encoder_share=0.0,
        use_share=0.0,
        distil="codes",
        distil_every=1,
    )
    inference, made, dictionary, prox = built(inference, Soft(0.1))
    inference.advance(0.0)
    solution: Solution = inference(made.x, dictionary.atoms, prox)
    assert inference.price is None
    assert duality_gap(made.x, solution.codes, dictionary.atoms, prox).max() <= 2e-4


def test_an_encoder_distilled_from_exact_codes_comes_close_to_them() -> None:
    inference = TwoPhase(
        Unrolled(n_layers=3, weights="shared", initial_step="lipschitz"),
        WorkingSet(),
        WorkingSet(),
        encoder_share=0.0,
        use_share=0.0,
        distil="codes",
        distil_every=1,
    )
    inference, made, dictionary, prox = built(inference, Soft(0.1))
    inference.advance(0.0)
    optimizer = torch.optim.Adam(inference.encoder.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        solution: Solution = inference(made.x, dictionary.atoms, prox)
        assert solution.extra_loss is not None
        loss = solution.extra_loss.mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_a_sparsity_without_exact_codes_is_refused() -> None:
    with pytest.raises(InputError, match="choose prox=topk"):
        built(two_phase(), Jump(0.1))


def test_the_last_part_of_a_run_fits_the_atoms_to_the_codes_of_use() -> None:
    inference, made, dictionary, prox = built(two_phase(distil="none", use_share=0.3))
    inference.advance(0.69)
    lasso: Solution = inference(made.x, dictionary.atoms, prox)
    assert inference.price is not None
    price = inference.price.lambda_.clone()
    inference.advance(0.7)
    greedy: Solution = inference(made.x, dictionary.atoms, prox)
    expected: Solution = inference.use(made.x, dictionary.atoms, prox)
    assert torch.equal(greedy.codes.dense(), expected.codes.dense())
    assert not torch.equal(greedy.codes.dense(), lasso.codes.dense())
    inference.observe(torch.tensor(30.0))
    assert torch.equal(inference.price.lambda_, price)  # which is that of the exact codes


def test_shares_of_more_than_a_run_and_a_learned_use_are_refused() -> None:
    with pytest.raises(InputError, match="more than the whole run"):
        two_phase(share=0.7, use_share=0.4)
    with pytest.raises(InputError, match=r"inference\.use_share=0"):
        TwoPhase(Unrolled(), WorkingSet(), Unrolled())


@pytest.mark.parametrize("every", [3, 64])
def test_one_row_in_so_many_is_a_lesson_and_their_mean_is_that_of_a_whole_batch(every: int) -> None:
    inference, made, dictionary, prox = built(two_phase(share=0.0, every=every))
    inference.advance(0.0)
    solution: Solution = inference(made.x, dictionary.atoms, prox)
    learned = inference.encoder(made.x[::every], dictionary.atoms, prox).codes.dense()
    expected = 0.5 * (made.x[::every] - learned @ dictionary.atoms).square().sum(1)
    assert solution.extra_loss is not None
    assert int((solution.extra_loss != 0).sum()) == len(expected)
    torch.testing.assert_close(solution.extra_loss.mean(), expected.mean())


def test_lessons_know_the_prices_of_their_rows() -> None:
    inference = two_phase("objective", share=0.0, use_share=0.0, every=2)
    inference.use = WorkingSet()
    inference, made, dictionary, prox = built(inference, Soft(lambda_=[0.05, 0.2]))
    inference.advance(0.0)
    layer = torch.arange(64) % 3 % 2
    solution: Solution = inference(made.x, dictionary.atoms, prox.for_layers(layer))
    some, theirs = made.x[::2], prox.for_layers(layer[::2])
    codes = inference.encoder(some, dictionary.atoms, theirs).codes
    assert solution.extra_loss is not None
    torch.testing.assert_close(
        solution.extra_loss[::2], 2 * objective(some, codes, dictionary.atoms, theirs)
    )
