"""A trained dictionary from disk codes raw hidden states and raw text as in training."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states import HiddenStates
from dictlearn.storage.saved import load
from dictlearn.storage.trained import ROWS_AT_ONCE
from tests.small_run import LAYERS
from tests.storage.made import ATOMS, FISTA, WIDTH, Made, Make


def codes_in_memory(made: Made, states: HiddenStates) -> Tensor:
    with torch.no_grad():
        return made.learner.infer(states)[1].codes.dense()


KINDS = ("none", "center", "unit_scale", "center_unit_scale")


@pytest.mark.parametrize("kind", KINDS)
def test_raw_vectors_give_the_codes_that_normalised_ones_gave_in_training(
    kind: str, make: Make
) -> None:
    made = make(normalization=kind)
    states = made.data.sample(200)
    vectors, x = states.vectors, states.vectors.clone()
    mean, scale = made.data.statistics.mean, made.data.statistics.scale
    for row, layer in enumerate(LAYERS):
        of_layer = states.layer == layer
        if kind.startswith("center"):
            x[of_layer] -= mean[row]
        if kind.endswith("unit_scale"):
            x[of_layer] /= scale[row]
    learner = made.learner
    with torch.no_grad():
        codes = learner.inference(x, learner.dictionary.atoms, learner.prox).codes.dense()
        decoded = codes @ learner.dictionary.atoms
    assert codes.count_nonzero() > 200
    torch.testing.assert_close(made.trained.encode(states), codes, rtol=1e-4, atol=1e-5)
    raw = made.trained.decode(codes, states.layer)
    for row, layer in enumerate(LAYERS):
        of_layer = states.layer == layer
        expected = decoded[of_layer]
        if kind.endswith("unit_scale"):
            expected = expected * scale[row]
        if kind.startswith("center"):
            expected = expected + mean[row]
        torch.testing.assert_close(raw[of_layer], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(vectors, states.vectors)


@pytest.mark.parametrize("about", [None, FISTA], ids=["unrolled", "fista"])
def test_the_error_of_a_round_trip_is_the_held_out_one(
    about: dict[str, Any] | None, make: Make
) -> None:
    made = make(about)
    error = spread = 0.0
    batches = list(made.data.val_dataloader())
    vectors = torch.cat([batch.vectors for batch in batches])
    layer = torch.cat([batch.layer for batch in batches])
    for index in LAYERS:
        part = vectors[layer == index]
        back = made.trained.decode(made.trained.encode(part, index), index)
        error += float((part - back).double().square().sum())
        spread += float((part - part.mean(0)).double().square().sum())
    assert error / spread == pytest.approx(made.figures["val/fvu"], rel=1e-3)


def test_a_batch_of_the_stream_knows_its_layers(made: Made, rows: HiddenStates) -> None:
    codes = made.trained.encode(rows)
    torch.testing.assert_close(codes, codes_in_memory(made, rows))
    assert codes.shape == (len(rows.vectors), ATOMS)
    back = made.trained.decode(codes, rows.layer)
    with torch.no_grad():
        decoded = made.learner.dictionary.decode(made.learner.infer(rows)[1].codes)
        expected = made.learner.raw(decoded, rows.layer)
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)


def stacked(rows: HiddenStates) -> Tensor:
    """Vectors of both layers, `[2, t, d]`."""
    return torch.stack([rows.vectors[rows.layer == layer] for layer in LAYERS])


def test_one_layer_and_stacked_layers_agree(made: Made, rows: HiddenStates) -> None:
    trained, both = made.trained, stacked(rows)
    expected = codes_in_memory(made, rows)
    codes = trained.encode(both)
    assert codes.shape == (*both.shape[:2], ATOMS)
    for row, layer in enumerate(LAYERS):
        torch.testing.assert_close(codes[row], expected[rows.layer == layer])
        for named in (layer, [layer], torch.tensor(layer), torch.tensor([layer])):
            torch.testing.assert_close(trained.encode(both[row], named), codes[row])
    assert not torch.allclose(trained.encode(both[0], 3), codes[0])
    torch.testing.assert_close(trained.encode(both.flip(0), LAYERS[::-1]), codes.flip(0))
    torch.testing.assert_close(trained.encode(both[0, 0], 0), codes[0, 0])
    square = both[:, :20].reshape(2, 4, 5, WIDTH)
    assert trained.encode(square).shape == (2, 4, 5, ATOMS)
    torch.testing.assert_close(trained.encode(square).flatten(1, 2), codes[:, :20])
    raw = trained.decode(codes)
    torch.testing.assert_close(raw[1], trained.decode(codes[1], 3))
    assert trained.decode(codes[0, 0], 0).shape == (WIDTH,)


def test_without_a_layer_the_mean_statistics_are_used_and_the_callers_line_is_warned(
    made: Made, rows: HiddenStates
) -> None:
    trained, vectors = made.trained, rows.vectors[:50]
    statistics = made.data.statistics
    x = (vectors - statistics.mean.mean(0)) / statistics.scale.mean()
    with torch.no_grad():
        x = made.learner.dictionary.centre(x)
        expected = made.learner.inference(x, trained.atoms, trained.prox).codes.dense()
    for call in (trained.encode, trained.infer, trained.decode):
        given = expected if call == trained.decode else vectors
        with pytest.warns(UserWarning, match=r"layer= was not given.*\(0, 3\)") as warned:
            found = call(given)
        assert warned[0].filename == __file__
        if call == trained.encode:
            assert isinstance(found, Tensor)
            torch.testing.assert_close(found, expected)
    with pytest.warns(UserWarning, match="mean statistics"):
        back = trained.decode(expected)
    bias = made.learner.dictionary.bias
    assert bias is not None
    decoded = expected @ trained.atoms + bias
    raw = decoded * statistics.scale.mean() + statistics.mean.mean(0)
    torch.testing.assert_close(back, raw.detach(), rtol=1e-4, atol=1e-4)


def test_a_dictionary_of_one_layer_or_without_normalisation_asks_for_no_layer(
    make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    alone, plain = make(layers=[3]), make(normalization="none")
    warnings.simplefilter("error")
    vectors = alone.data.sample(20).vectors
    torch.testing.assert_close(alone.trained.encode(vectors), alone.trained.encode(vectors, 3))
    torch.testing.assert_close(plain.trained.encode(vectors), plain.trained.encode(vectors, 0))


def test_what_does_not_fit_is_told_with_both_sides(made: Made, rows: HiddenStates) -> None:
    trained, vectors = made.trained, rows.vectors[:6]
    with pytest.raises(InputError, match="width 383 but the atoms have width 384"):
        trained.encode(vectors[:, 1:], 0)
    with pytest.raises(InputError, match="63 entries but the dictionary has 64 atoms"):
        trained.decode(torch.zeros(2, 63), 0)
    with pytest.raises(InputError, match=r"layer=\[1, 2\] was not trained on.*\(0, 3\)"):
        trained.encode(vectors, [0, 2, 1, 3, 3, 3])
    with pytest.raises(InputError, match=r"layer=\[-1\] was not trained on"):
        trained.encode(vectors, -1)
    with pytest.raises(InputError, match="names 2 layers but the first axis has length 6"):
        trained.encode(vectors, [0, 3])
    with pytest.raises(InputError, match="names 2 layers but the first axis has length 1"):
        trained.encode(vectors[0], [0, 3])
    with pytest.raises(InputError, match="names 0 layers but the first axis has length 6"):
        trained.encode(vectors, [])


@pytest.mark.parametrize("about", [None, FISTA], ids=["unrolled", "fista"])
def test_no_rows_give_no_codes(
    about: dict[str, Any] | None, make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    made = make(about)
    trained = made.trained
    none = HiddenStates(*(column[:0] for column in made.data.sample(10)))
    assert trained.encode(none).shape == (0, ATOMS)
    assert trained.encode(torch.zeros(0, WIDTH), 3).shape == (0, ATOMS)
    assert trained.encode(torch.zeros(2, 0, WIDTH)).shape == (2, 0, ATOMS)
    assert trained.decode(torch.zeros(0, ATOMS), 3).shape == (0, WIDTH)
    assert trained.infer(torch.zeros(0, WIDTH), 3).gap.shape == (0,)


def test_in_chunks_it_encodes_and_decodes_as_at_once(
    made: Made, rows: HiddenStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, both = made.trained, stacked(rows)
    whole = trained.encode(both)
    raw = trained.decode(whole)
    assert both[..., 0].numel() < ROWS_AT_ONCE
    for size in (1, 7, both.shape[1], both.shape[1] + 1):
        monkeypatch.setattr("dictlearn.storage.trained.ROWS_AT_ONCE", size)
        torch.testing.assert_close(trained.encode(both), whole)
        torch.testing.assert_close(trained.decode(whole), raw, rtol=1e-4, atol=1e-4)


def test_other_number_formats_and_layouts_are_taken(made: Made, rows: HiddenStates) -> None:
    vectors = rows.vectors[rows.layer == 0][:20]
    codes = made.trained.encode(vectors, 0)
    torch.testing.assert_close(made.trained.encode(vectors.double(), 0), codes)
    torch.testing.assert_close(made.trained.encode(vectors.T.contiguous().T, 0), codes)
    assert made.trained.encode(vectors.bfloat16(), 0).dtype == torch.float32
    learned = vectors.clone().requires_grad_()
    assert not made.trained.encode(learned, 0).requires_grad


def test_certificates_come_with_the_codes_that_encode_gives(make: Make) -> None:
    made = make(FISTA)
    rows = made.data.sample(100)
    solution = made.trained.infer(rows)
    assert solution.gap.shape == (len(rows.vectors),)
    assert solution.gap.max() <= 1e-4
    assert solution.converged.all()
    torch.testing.assert_close(solution.codes.dense(), made.trained.encode(rows))


def test_a_text_is_cut_as_in_training_and_gives_one_row_per_token(made: Made) -> None:
    data, rows = made.data, made.data.sample(10**6)
    index = int(rows.document[0])
    name = data.store.document_ids[index]
    (text,) = [document.text for document in data.text.documents() if document.id == name]
    first, last = data.store.offsets[index : index + 2]
    n = int(last - first)
    assert n > 10 * data.options.block_length
    found = made.trained.encode_text(text)
    assert found.layers == LAYERS
    assert len(found.tokens) == n
    assert found.hidden_states.shape == (2, n, WIDTH)
    assert found.codes.shape == (2, n, ATOMS)
    ids = data.store.tokens[first:last].tolist()
    assert found.tokens == [data.transformer.tokenizer.decode([token]) for token in ids]
    for row, layer in enumerate(LAYERS):
        of_text = (rows.document == index) & (rows.layer == layer)
        order = rows.position[of_text].argsort()
        assert rows.position[of_text][order].tolist() == list(range(n))
        torch.testing.assert_close(
            found.hidden_states[row], rows.vectors[of_text][order], rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            found.codes[row], made.trained.encode(found.hidden_states[row], layer)
        )


def test_control_tokens_written_out_in_a_text_are_text(made: Made) -> None:
    found = made.trained.encode_text("one [SEP] two")
    assert "[SEP]" not in found.tokens
    assert "".join(found.tokens) == "one[sep]two"


def test_a_text_without_a_token_is_refused(made: Made) -> None:
    for text in ("", " \n\t"):
        with pytest.raises(InputError, match="holds no token"):
            made.trained.encode_text(text)


def test_broken_characters_of_a_command_line_are_taken(made: Made) -> None:
    assert made.trained.encode_text("caf\udce9 noir").tokens[-1] == "noir"


def test_a_transformer_with_other_weights_is_refused(
    made: Made, minilm_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(minilm_folder, copy)
    trained = load(made.folder)
    trained.about["transformer"]["path"] = str(copy)
    same = trained.encode_text("The bank.")
    torch.testing.assert_close(same.codes, made.trained.encode_text("The bank.").codes)
    tensors = load_file(copy / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 7] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    other = load(made.folder)
    other.about["transformer"]["path"] = str(copy)
    for _ in range(2):
        with pytest.raises(InputError, match="not the one this dictionary was trained on"):
            other.encode_text("The bank.")


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_it_moves_to_a_device_and_takes_inputs_from_any(
    device: str, made: Made, rows: HiddenStates
) -> None:
    expected = load(made.folder).encode(rows)
    moved = load(made.folder).to(device)
    codes = moved.encode(rows)
    assert codes.device.type == device
    assert moved.atoms.device.type == device
    torch.testing.assert_close(codes.cpu(), expected, rtol=1e-3, atol=1e-4)
    assert moved.decode(codes.cpu(), rows.layer).device.type == device
