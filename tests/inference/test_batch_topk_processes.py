"""The cut of batch top-k in a run of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dictlearn.inference import Unrolled
from dictlearn.prox import BatchTopK
from tests.inference.problems import dictionary_of, problem
from tests.inference.test_unrolled_counted import rows

STEPS, HALF = 5, 64


def batch(step: int, alike: bool) -> Tensor:
    """Rows of both processes together; alike: both have the same, in another order."""
    if not alike:
        return rows(step, 2 * HALF)
    half = rows(step, HALF)
    return torch.cat([half, half.flip(0)])


def trained(part: slice, alike: bool) -> Unrolled:
    """An encoder that saw its part of every batch; nothing but the cut is learned."""
    dictionary = dictionary_of(problem(n=1).atoms)
    encoder = Unrolled(1)
    prox = BatchTopK(4)
    encoder.build(dictionary, prox)
    encoder.train()
    for step in range(STEPS):
        encoder(batch(step, alike)[part], dictionary.atoms, prox)
    return encoder.eval()


def kept(encoder: Unrolled) -> Tensor:
    """Its codes at use, of rows that nobody was trained on."""
    dictionary = dictionary_of(problem(n=1).atoms)
    with torch.no_grad():
        dense: Tensor = encoder(rows(999), dictionary.atoms, BatchTopK(4)).codes.dense()
    return dense


def cut(encoder: Unrolled) -> Tensor:
    assert encoder.cut is not None
    return encoder.cut.value


def _process(rank: int, folder: str, alike: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    encoder = trained(slice(rank * HALF, (rank + 1) * HALF), alike)
    torch.save([cut(encoder), kept(encoder)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("alike", [True, False])
def test_two_processes_share_their_batches_out_together(alike: bool, tmp_path: Path) -> None:
    parts = [trained(slice(0, HALF), alike), trained(slice(HALF, None), alike)]
    alone = trained(slice(None), alike)
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _process, (str(tmp_path), alike), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first[0], cut(alone))
    torch.testing.assert_close(first[1], kept(alone))
    assert alike or cut(parts[0]) != cut(parts[1])
