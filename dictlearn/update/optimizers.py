"""Dictionary updates as torch optimizers: state, checkpoints and step counts come with them.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class DictionaryOptimizer(torch.optim.Adam):
    """Adam for the encoder and the bias; what it does to the atoms is up to the rule.

    Parameters belong to one of three groups, by the key ``role``: `atoms` (the one matrix of
    the dictionary), `bias` (its other parameters) and `encoder`, whose tensors either have the
    atoms in dimension 0 or no dimension at all.

    Args:
        dictionary_parameters: the atoms `[m, d]` and, if there is one, the bias `[d]`.
        encoder_parameters: of the inference; may be empty.
        lr: rate of the dictionary.
        encoder_lr: rate of the encoder.
    """

    def __init__(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
        lr: float,
        encoder_lr: float,
    ) -> None:
        (self.atoms,) = [entry for entry in dictionary_parameters if entry.ndim == 2]
        bias = [entry for entry in dictionary_parameters if entry.ndim != 2]
        groups: list[dict[str, Any]] = [
            {"params": [self.atoms], "lr": lr, "role": "atoms"},
            {"params": bias, "lr": self._bias_rate(lr, encoder_lr), "role": "bias"},
            {"params": list(encoder_parameters), "lr": encoder_lr, "role": "encoder"},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, fused=True)

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return lr

    def observe(self, energy: Tensor) -> None:
        """Take the mean squared code of every atom, `[m]`, over the rows of the coming step.

        Rules without a curvature do not use it.
        """

    @torch.no_grad()
    def reset_atoms(self, indices: Tensor) -> None:
        """Forget everything about some atoms, after they were replaced."""
        m = len(self.atoms)
        for group in self.param_groups:
            if group["role"] == "bias":
                continue
            for parameter in group["params"]:
                if parameter.ndim == 0 or len(parameter) != m:
                    continue
                for name in ("exp_avg", "exp_avg_sq"):
                    moment = self.state[parameter].get(name)
                    if moment is not None:
                        moment[indices] = 0

    @torch.no_grad()
    def _to_sphere(self) -> None:
        self.atoms.copy_(nn.functional.normalize(self.atoms, dim=1))


class SphereAdam(DictionaryOptimizer):
    """Adam for the atoms too, kept on the sphere.

    The gradient is projected on the tangent space of the atoms, so that no moment is spent on
    changes of length, Adam takes its step (Kingma & Ba 2015, Algorithm 1), and the atoms are
    scaled back to unit norm.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returned."""
        loss = _evaluated(closure)
        gradient = self.atoms.grad
        if gradient is not None:
            radial = (gradient * self.atoms).sum(1, keepdim=True)
            gradient.addcmul_(radial, self.atoms, value=-1)
        super().step()
        self._to_sphere()
        return loss


class HessianDiagonal(DictionaryOptimizer):
    """The paper's rule: steps divided by the curvature along each atom.

    The second derivative of the reconstruction error along atom c is the mean of `a_c^2`, its
    code energy, of which a moving average H over `window` updates is kept
    (Yun et al. 2021, appendix; `quadraticBasisUpdate` of the released code):

        H   <- (1 - 1/window) H + energy / window
        Phi <- normalise(Phi - lr * gradient / (curvature + floor))

    mode `seed`: the curvature is H, which starts at 0 and is not bias-corrected, and the floor
    is the number given. As in the released code the first step is thus `window` times too long.
    mode `corrected`: the curvature is `H / (1 - (1 - 1/window)^updates)` and the floor a share
    of its mean over atoms, so that the rule depends neither on the age of the run nor on the
    scale of the data.

    Args:
        dictionary_parameters: the atoms `[m, d]` and, if there is one, the bias `[d]`.
        encoder_parameters: trained by Adam.
        lr: share of a Newton step.
        encoder_lr: Adam's rate, for the bias too.
        mode: `seed` or `corrected`.
        window: updates that the energy is averaged over.
        floor: see mode.
    """

    def __init__(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
        lr: float,
        encoder_lr: float,
        mode: str,
        window: int,
        floor: float,
    ) -> None:
        super().__init__(dictionary_parameters, encoder_parameters, lr, encoder_lr)
        self.mode, self.window, self.floor = mode, window, floor
        self._observed: list[Tensor] = []

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return encoder_lr

    def observe(self, energy: Tensor) -> None:
        """Take the mean squared codes `[m]`; those of accumulated batches are averaged."""
        self._observed.append(energy.detach())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returned.

        Raises:
            RuntimeError: no code energies were observed since the last step.
        """
        loss = _evaluated(closure)
        gradient, self.atoms.grad = self.atoms.grad, None
        super().step()
        self.atoms.grad = gradient
        if gradient is not None:
            rate = self.param_groups[0]["lr"]
            self.atoms.sub_(rate * gradient / self._curvature()[:, None])
            self._to_sphere()
        return loss

    def _curvature(self) -> Tensor:
        """Take the observed energies in; return what the gradient is divided by, `[m]`."""
        if not self._observed:
            raise RuntimeError("observe(energy) comes before every step of HessianDiagonal")
        state = self.state[self.atoms]
        if not state:
            state["step"] = torch.zeros((), device=self.atoms.device)
            state["energy"] = torch.zeros_like(self.atoms[:, 0])
        average: Tensor = state["energy"]
        energy = torch.stack(self._observed).mean(0)
        self._observed.clear()
        state["step"] += 1
        average.mul_(1 - 1 / self.window).add_(energy, alpha=1 / self.window)
        if self.mode == "seed":
            return average + self.floor
        curvature = average / -torch.expm1(state["step"] * _log_keep(self.window))
        least = self.floor * curvature.mean()
        return (curvature + least).clamp_min(torch.finfo(curvature.dtype).tiny)

    @torch.no_grad()
    def reset_atoms(self, indices: Tensor) -> None:
        """Forget some atoms: their energy starts at 0 as in the released code, or at the mean."""
        super().reset_atoms(indices)
        energy = self.state[self.atoms].get("energy")
        if energy is not None:
            energy[indices] = 0.0 if self.mode == "seed" else energy.mean()


def _log_keep(window: int) -> float:
    return float(torch.log1p(torch.tensor(-1.0 / window, dtype=torch.float64)))


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
