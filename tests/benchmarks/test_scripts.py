"""Every script runs at its tiniest, on vectors of a file, with and without peers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    cached,
    dictionary_parallel,
    exact_learning,
    frontier,
    gram_descent,
    guards,
    layers,
    methods,
    ours,
    running,
    several,
    solvers,
    synthetic,
    training_step,
)
from benchmarks.measure import training_order
from dictlearn.inference import WorkingSet
from dictlearn.prox import Soft


@pytest.fixture
def given(data: Path, rows_file: Path, tmp_path: Path) -> list[str]:
    """The arguments that all scripts share."""
    return [
        *("--quick", "--data", str(data), "--vectors", str(rows_file)),
        *("--json", str(tmp_path / "figures.json")),
    ]


def figures(tmp_path: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((tmp_path / "figures.json").read_text())
    return found


def test_training_step_times_ours_and_says_which_peers_are_missing(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training_step.main(given)
    printed = capsys.readouterr().out
    assert printed.count("no network in tests") == len(training_step.TRAINED)
    assert figures(tmp_path)["step/dictlearn/ours_faster"] == 1.0
    assert figures(tmp_path)["step/five/cpu_ms"] > 0


@pytest.mark.slow
def test_several_dictionaries_are_timed_beside_a_run_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several.main(
        [
            *("--quick", "--only", "TopK autoencoder", "--branch-at", "0", "0.5"),
            *("--json", str(tmp_path / "figures.json")),
        ]
    )
    found = figures(tmp_path)
    apart, as_one = ("TopK autoencoder/branch_at0", "TopK autoencoder/branch_at0.5")
    assert found[f"{apart}/same_fvu"] == 1
    assert found[f"{as_one}/same_fvu"] == 0
    assert found[f"{apart}/times_cheaper"] > 1
    assert 0.5 < found[f"{as_one}/worst_fvu_over_own"] < 2
    printed = capsys.readouterr().out
    assert "2 dictionaries of 256 atoms" in printed
    assert "same, same" in printed


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(given: list[str], tmp_path: Path) -> None:
    training_step.main([*given, "--memory", "--no-peers"])
    found = figures(tmp_path)
    assert found["memory/dictlearn/peak_mb"] > found["memory/dictlearn/above_mb"]
    assert found["memory/dictlearn/above_mb"] >= found["memory/dictlearn/step_mb"] > 0


def test_layers_on_candidates_are_timed_beside_those_on_all_atoms(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers.main([*given, "--k", "8", "--candidates", "16", "--n-rows", "512"])
    found = figures(tmp_path)
    assert found["layers/topk_encode/us"] > 0
    assert found["layers/16_candidates/of_dense"] == pytest.approx(
        found["layers/16_candidates/us"] / found["layers/all_atoms/us"]
    )
    assert "16 candidates" in capsys.readouterr().out


@pytest.mark.slow
def test_exact_dictionary_learning_is_timed_beside_the_prototype(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact_learning.main([*given, "--batch", "128"])
    found = figures(tmp_path)
    assert capsys.readouterr().out.count("no network in tests") == 2
    for name in (exact_learning.OURS, exact_learning.PROTOTYPE, exact_learning.AT_PRICE):
        assert found[f"exact/{name}/vectors_per_cpu_second"] > 0
        assert found[f"exact/{name}/objective"] < 0.5
    assert found["exact/seed/ours_faster"] > 1


def test_the_prototype_finds_the_codes_of_the_exact_solver() -> None:
    draws = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(96, 32, generator=draws), dim=1)
    x = torch.randn(64, 32, generator=draws)
    codes = torch.zeros(64, 96)
    gram, b = (atoms @ atoms.T).numpy(), (x @ atoms.T).numpy()
    gram_descent._descend(b, gram, x.square().sum(1).numpy(), 0.5, 1e-6, codes.numpy())
    exact = WorkingSet(tolerance=1e-6)(x, atoms, Soft(0.5)).codes.dense()
    torch.testing.assert_close(codes, exact, atol=5e-3, rtol=0)


def test_solvers_reach_their_gap_and_pursuits_keep_k(given: list[str], tmp_path: Path) -> None:
    solvers.main([*given, "--k", "8"])
    found = figures(tmp_path)
    assert found["lasso/m512/working_set torch/worst_gap"] <= 1.0001e-4
    assert found["lasso/m512/working_set torch float64/worst_gap"] <= 1.0001e-8
    assert 0 < found["pursuit/m512/omp torch/fvu"] < 0.5


def test_the_gap_is_zero_at_the_optimum_and_bounds_the_suboptimality() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    atoms = torch.eye(5, dtype=torch.float64)
    best = torch.relu(x - 0.3)
    problem = methods.Problem(x, atoms, 0.3, 2)
    assert float(solvers.relative_gaps(problem, best).max()) < 1e-12

    def value(codes: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - codes @ atoms).square().sum(1) + 0.3 * codes.sum(1)

    worse = best + 0.1
    share = (value(worse) - value(best)) / value(worse)
    assert bool((solvers.relative_gaps(problem, worse) >= share).all())
    assert bool((solvers.relative_gaps(problem, worse) > 1e-3).all())


def test_negative_codes_are_refused_by_the_gap() -> None:
    problem = methods.Problem(torch.ones(1, 2), torch.eye(2), 0.1, 1)
    with pytest.raises(ValueError, match="negative"):
        solvers.relative_gaps(problem, -torch.ones(1, 2))


@pytest.mark.slow
def test_the_frontier_goes_on_where_it_was(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [
        *given,
        "--n-vectors",
        "3000",
        "--only",
        "presets",
        "ours",
        "peers",
        "--method",
        "topk",
        "two_phase",
    ]
    frontier.main(run)
    first = figures(tmp_path)
    assert "no network in tests" in capsys.readouterr().out
    assert 0 < first["m256/presets/dictlearn/topk/0.003/fvu@32"] < 1
    assert 0 < first["m256/ours/dictlearn/two_phase/None/best@32"] < 1
    kept = sorted((tmp_path / "benchmarks" / "frontier").rglob("*.json"))
    times = [file.stat().st_mtime_ns for file in kept]
    assert len(kept) == 2
    frontier.main([*run, "--table"])
    frontier.main(run)
    assert [file.stat().st_mtime_ns for file in kept] == times
    assert figures(tmp_path) == first


def test_a_run_takes_the_same_steps_from_the_same_seed(rows_file: Path) -> None:
    x = torch.from_numpy(np.load(rows_file))
    order = training_order(len(x), 600, 0)
    found = []
    for _ in range(2):
        run = ours.Run([*training_step.our_overrides(64, 4)], x, 100, 600)
        before = run.atoms().clone()
        run.train(order)
        assert not torch.equal(run.atoms(), before)
        assert torch.allclose(run.atoms().norm(dim=1), torch.ones(64), atol=1e-5)
        found.append(run.atoms().clone())
    assert torch.equal(*found)


def test_codes_of_a_run_can_be_had_at_another_k(rows_file: Path) -> None:
    x = torch.from_numpy(np.load(rows_file))[:50]
    run = ours.Run([*training_step.our_overrides(64, 4)], x, 50, 50)
    run.train(training_order(50, 50, 0))
    assert run.codes(x).values.shape == (50, 4)
    assert run.codes(x, 7).values.shape == (50, 7)


def test_the_truth_scores_one_against_itself() -> None:
    truth = synthetic.made(2000, d=32, m=40)
    found = synthetic.scored(truth.atoms, truth.codes, truth)
    assert found["found"] == 1.0
    assert found["mcc"] == pytest.approx(1.0, abs=1e-6)
    shuffled = torch.randperm(40)
    again = synthetic.scored(truth.atoms[shuffled], truth.codes[:, shuffled], truth)
    assert again["mcc"] == pytest.approx(1.0, abs=1e-6)
    other = synthetic.made(2000, d=32, m=40, seed=1)
    assert synthetic.scored(other.atoms, truth.codes, truth)["found"] < 0.2


def test_no_usual_start_of_a_trainer_is_the_truth() -> None:
    truth = synthetic.made(10, d=32, m=40)
    torch.manual_seed(0)
    for start in (torch.randn(40, 32), torch.randn(32, 40).T):
        assert synthetic.scored(start, truth.codes, truth)["found"] < 0.2
    overrides = [*training_step.our_overrides(40, 4)]
    start = ours.Run(overrides, truth.train, 10, 10).atoms()
    assert synthetic.scored(start, truth.codes, truth)["found"] < 0.2


def test_the_truth_has_the_frequencies_it_says() -> None:
    truth = synthetic.made(100)
    l0 = float((truth.codes > 0).sum(1).float().mean())
    assert l0 == pytest.approx(6.0, abs=0.4)
    often = (truth.codes > 0).float().mean(0)
    assert float(often[:20].mean()) > 5 * float(often[-100:].mean())


def test_synthetic_trains_and_scores(given: list[str], tmp_path: Path) -> None:
    synthetic.main([*given, "--only", "TopK", "two-phase", "--n-vectors", "4000"])
    found = figures(tmp_path)
    assert 0 <= found["two-phase/found"] <= 1
    assert -1 <= found["TopK/mcc"] <= 1


@pytest.mark.slow
def test_a_dictionary_in_two_parts_is_measured_beside_the_whole(tmp_path: Path) -> None:
    dictionary_parallel.main(["--quick", "--json", str(tmp_path / "figures.json")])
    found = figures(tmp_path)
    for name in ("parallel/256/1/mb", "parallel/256/2/cpu_ms", "layer/256/dtensor_cpu_ms"):
        assert found[name] > 0


@pytest.mark.slow
def test_running_times_checkpoints_and_overlap(tmp_path: Path) -> None:
    running.main(["--quick", "--json", str(tmp_path / "figures.json")])
    found = figures(tmp_path)
    assert 0 < found["saving/256/share"] < 0.1
    assert found["overlap/TopK autoencoder/false/share"] < 0.2
    assert found["overlap/default (two_phase)/true/vectors_per_second"] > 0


@pytest.mark.slow
def test_what_guards_and_outages_cost_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, guards.__file__, "--quick"]  # it puts stopwatches into the library
    subprocess.run([*command, "--json", str(tmp_path / "figures.json")], check=True, timeout=500)
    found = figures(tmp_path)
    assert 0 < found["guards/default (two_phase)/hidden_states/share"] < 0.1
    assert 0 < found["guards/default (two_phase)/gradients/share"] < 0.1
    assert found["outage/nothing happens/step_time"] == 1
    assert found["outage/goes away/step_time"] > 0


@pytest.mark.slow
def test_cached_is_measured_beside_live(tmp_path: Path) -> None:
    given = ["--quick", "--data", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    cached.main([*given, "--only", "TopK autoencoder"])
    found = figures(tmp_path)
    assert found["TopK autoencoder/live"] > 0
    assert found["TopK autoencoder/faster"] > 0
    assert found["cache/read_warm_vectors_per_s"] > 0
