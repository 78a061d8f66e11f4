"""The dictionary: unit atoms, starts, and the way there and back."""

import pytest
import torch

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError


def test_atoms_have_unit_norm_from_the_first_moment_and_after_renormalisation() -> None:
    dictionary = Dictionary(20, 8)
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(20))
    before = dictionary.atoms.detach().clone()
    with torch.no_grad():
        dictionary.atoms.mul_(torch.rand(20, 1) + 0.5)
    dictionary.renormalize_()
    torch.testing.assert_close(dictionary.atoms.detach(), before)


def test_the_start_depends_on_the_seed_alone() -> None:
    assert torch.equal(Dictionary(5, 4, seed=1).atoms, Dictionary(5, 4, seed=1).atoms)
    assert not torch.equal(Dictionary(5, 4, seed=1).atoms, Dictionary(5, 4, seed=2).atoms)


@pytest.mark.parametrize("bias", [False, True])
def test_data_start_takes_distinct_non_zero_rows(bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 6)
    x[3] = x[5]
    if not bias:
        x[7] = 0
    dictionary = Dictionary(9, 6, bias=bias, initialization="data")
    dictionary.initialize_from(x)
    centred = x - x.mean(0) if bias else x
    cosine = dictionary.atoms @ torch.nn.functional.normalize(centred, dim=1).T
    torch.testing.assert_close(cosine.amax(1), torch.ones(9))
    assert len({round(a, 5) for a in dictionary.atoms[:, 0].tolist()}) == 9


def test_atoms_without_a_row_of_their_own_keep_their_gaussian_start() -> None:
    dictionary = Dictionary(10, 6, initialization="data")
    gaussian = dictionary.atoms.detach().clone()
    dictionary.initialize_from(torch.eye(6)[:4] * 3)
    torch.testing.assert_close(dictionary.atoms[4:].detach(), gaussian[4:])
    assert dictionary.atoms[:4].sum(0).tolist() == [1, 1, 1, 1, 0, 0]
    dictionary.initialize_from(torch.zeros(3, 6))
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(10))


def test_gaussian_start_ignores_the_data_but_for_the_bias() -> None:
    dictionary = Dictionary(10, 6, bias=True, initialization="gaussian")
    before = dictionary.atoms.detach().clone()
    x = torch.randn(50, 6)
    dictionary.initialize_from(x)
    torch.testing.assert_close(dictionary.atoms.detach(), before)
    assert dictionary.bias is not None
    torch.testing.assert_close(dictionary.bias.detach(), x.mean(0))


def test_decoding_is_the_same_for_dense_and_sparse_codes_and_gradients_arrive() -> None:
    torch.manual_seed(0)
    dictionary = Dictionary(7, 4)
    sparse = Codes(torch.rand(5, 2), torch.stack([torch.randperm(7)[:2] for _ in range(5)]), 7)
    gradients: list[torch.Tensor] = []
    for codes in (sparse, Codes.from_dense(sparse.dense())):
        decoded = dictionary.decode(codes)
        torch.testing.assert_close(decoded, sparse.dense() @ dictionary.atoms)
        gradients += torch.autograd.grad(decoded.square().sum(), [dictionary.atoms])
    torch.testing.assert_close(*gradients)


def test_the_bias_is_taken_off_and_put_back() -> None:
    dictionary = Dictionary(7, 4, bias=True)
    x = torch.randn(10, 4) + 2
    dictionary.initialize_from(x)
    assert not torch.allclose(dictionary.centre(x), x)
    torch.testing.assert_close(dictionary.uncentre(dictionary.centre(x)), x)
    plain = Dictionary(7, 4)
    assert plain.centre(x) is x
    assert plain.uncentre(x) is x


def test_no_more_hidden_states_are_wanted_than_the_start_is_made_of() -> None:
    assert Dictionary(10**5, 4).n_for_start == 0
    assert Dictionary(700, 4, initialization="data").n_for_start == 2800
    assert Dictionary(700, 4, bias=True).n_for_start == 2800
    assert Dictionary(10**5, 4, bias=True).n_for_start == 2**14
    started = Dictionary(700, 4, initialization="data")
    started.start_from(Dictionary(700, 4))
    assert started.n_for_start == 0


def test_mistakes_are_told_by_their_key() -> None:
    with pytest.raises(InputError, match=r"dictionary\.n_atoms"):
        Dictionary(0, 4)
    with pytest.raises(InputError, match=r"dictionary\.initialization=date.*Did you mean 'data'"):
        Dictionary(3, 4, initialization="date")
    with pytest.raises(InputError, match=r"dictionary\.dead_after_vectors"):
        Dictionary(3, 4, dead_after_vectors=0)
    with pytest.raises(InputError, match="width 5 but the dictionary has width 4"):
        Dictionary(3, 4).initialize_from(torch.zeros(2, 5))
