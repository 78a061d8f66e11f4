"""Every option of unrolled layers comes back from the artefact as it was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dictlearn.dictionary import Dictionary
from dictlearn.hidden_states import Normalization
from dictlearn.inference import Unrolled, training_loss
from dictlearn.prox import Moment
from dictlearn.storage.choosing import named, object_of
from dictlearn.storage.saved import load, save_dictionary
from tests.inference.problems import dictionary_of, problem

TOPK: dict[str, Any] = {"_target_": "dictlearn.prox.TopK", "k": 4}
BATCH: dict[str, Any] = {"_target_": "dictlearn.prox.BatchTopK", "k": 4}
NESTED: dict[str, Any] = {**TOPK, "sampled": [2, 8]}
JUMP: dict[str, Any] = {"_target_": "dictlearn.prox.Jump", "lambda_": 1.0, "target_l0": 4.0}
SOFT: dict[str, Any] = {"_target_": "dictlearn.prox.Soft", "lambda_": 0.05}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (TOPK, {"n_layers": 3, "momentum": True, "selection": "fast"}),
    (NESTED, {"n_layers": 2}),
    (BATCH, {"n_layers": 2}),
    (BATCH, {"n_layers": 4, "n_candidates": 9, "rescreen": True}),
    (BATCH, {"n_layers": 1, "weights": "shared", "initial_step": 1.0}),
    (JUMP, {"n_layers": 2}),
    (SOFT, {"n_layers": 3, "weights": "shared", "synthesis": "learned"}),
    (SOFT, {"n_layers": 3, "weights": "untied", "synthesis": "learned"}),
    (SOFT, {"n_layers": 3, "weights": "analytic"}),
    (SOFT, {"n_layers": 1, "thresholds": "bias"}),
    (TOPK, {"n_layers": 2, "refit": True, "engine": "torch"}),
]


def trained(prox_node: dict[str, Any], options: dict[str, Any]) -> tuple[Unrolled, Dictionary, Any]:
    prox = object_of(named(prox_node))
    world = problem(n=64, dtype=torch.float32)
    dictionary = dictionary_of(world.atoms)
    encoder = Unrolled(**options)
    encoder.build(dictionary, prox)
    optimizer = torch.optim.Adam([*encoder.parameters(), dictionary.atoms], lr=0.02)
    for step in range(4):
        now = prox.at(Moment(step / 4, 0, step))
        codes = encoder.train()(world.x, dictionary.atoms, now).codes
        optimizer.zero_grad()
        training_loss(world.x, dictionary.decode(codes), codes, now).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        dictionary.renormalize_()
    return encoder.eval(), dictionary, prox


@pytest.mark.parametrize(("prox_node", "options"), CASES, ids=lambda case: str(case)[-60:])
def test_what_was_saved_codes_as_before(
    prox_node: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    encoder, dictionary, prox = trained(prox_node, options)
    normalization = Normalization("none", [0], torch.zeros(1, 16), torch.ones(1))
    node = {"_target_": "dictlearn.inference.Unrolled", **options}
    about: dict[str, Any] = {"prox": prox_node, "inference": node, "transformer": {}, "text": {}}
    save_dictionary(tmp_path / "dictionary", dictionary, encoder, normalization, about)
    loaded = load(tmp_path)
    assert loaded.prox == prox
    assert loaded.inference.state_dict().keys() == encoder.state_dict().keys()
    x = problem(n=30, dtype=torch.float32, seed=7).x
    with torch.no_grad():
        expected = encoder(x, dictionary.atoms, prox).codes.dense()
    found = loaded.encode(x)
    assert found.any()
    torch.testing.assert_close(found, expected)


def test_the_k_of_a_nested_encoder_is_chosen_at_use(tmp_path: Path) -> None:
    encoder, dictionary, prox = trained(NESTED, {"n_layers": 2})
    normalization = Normalization("none", [0], torch.zeros(1, 16), torch.ones(1))
    about: dict[str, Any] = {
        "prox": NESTED,
        "inference": {"_target_": "dictlearn.inference.Unrolled", "n_layers": 2},
        "transformer": {},
        "text": {},
    }
    save_dictionary(tmp_path / "dictionary", dictionary, encoder, normalization, about)
    x = problem(n=30, dtype=torch.float32, seed=7).x
    for k in (2, 7):
        codes = load(tmp_path).with_inference("encoder", k=k).encode(x)
        assert int((codes > 0).sum(1).amax()) == k
        with torch.no_grad():
            now = prox.__class__(k)
            expected = encoder(x, dictionary.atoms, now).codes.dense()
        torch.testing.assert_close(codes, expected)
