"""A small dictionary with an encoder, a sparsity and a loss, in one piece or in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.dictionary import Dictionary
from dictlearn.inference import Inference, Unrolled, duality_gap, objective
from dictlearn.losses import Loss, View
from dictlearn.mesh import whole_codes
from dictlearn.prox import Prox
from dictlearn.update import UpdateRule
from tests.inference.problems import dictionary_of, problem
from tests.inference.test_unrolled_family import disturbed

M, D, N = 48, 16, 24
DEAD = [2, 3, 17, 30, 45]


class Learned(torch.nn.Module):
    """What the learner is to `share_out_learned`."""

    idle: Tensor

    def __init__(self, inference: Inference, prox: Prox, loss: Loss, update: UpdateRule) -> None:
        super().__init__()
        given = problem(N, D, M)
        dictionary = dictionary_of(given.atoms)
        self.dictionary = Dictionary(M, D, bias=True).double()
        self.dictionary.atoms.data.copy_(dictionary.atoms.data)
        inference.build(self.dictionary, prox)
        self.inference = inference.double()
        if isinstance(inference, Unrolled):
            disturbed(inference)
        self.prox, self.loss, self.update = prox, loss, update
        idle = torch.arange(M)
        idle[DEAD] += 1000
        self.register_buffer("idle", idle)

    def view(self, seed: int = 0) -> View:
        raw = problem(N, D, M, seed=seed).x
        weight = torch.linspace(0.5, 1.5, N, dtype=torch.float64)
        x = self.dictionary.centre(raw)
        solution = self.inference(x, self.dictionary.atoms, self.prox, certify=True)
        decoded = self.dictionary.decode(solution.codes)
        dead = self.idle >= 1000
        parts = (self.dictionary, self.inference, self.prox)
        return View(x, decoded, solution, *parts, weight, dead, self.idle)

    def results(self) -> dict[str, Tensor]:
        """Loss, gradients, gap, objective and codes in training, and codes at use."""
        shards = self.dictionary.shards
        view = self.view()
        loss = self.loss(view)
        torch.autograd.backward(loss)
        named = (*self.dictionary.named_parameters(), *self.inference.named_parameters())
        found = {f"d {name}": entry.grad for name, entry in named if entry.grad is not None}
        codes, atoms = view.solution.codes.detach(), self.dictionary.atoms.detach()
        found["loss"] = loss.detach()
        found["codes"] = whole_codes(codes, shards).dense()
        found["objective"] = objective(view.x, codes, atoms, self.prox, shards).detach()
        found["gap"] = duality_gap(view.x.detach(), codes, atoms, self.prox, shards)
        found["steps"] = torch.tensor(view.solution.steps)
        self.inference.eval()
        with torch.no_grad():
            solution = self.view(seed=1).solution  # other rows: a cut is one of the codes
        found["codes at use"] = whole_codes(solution.codes, shards).dense()
        found["own gap"] = solution.gap
        return found
