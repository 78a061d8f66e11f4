"""Dictionary updates as torch optimizers: state, checkpoints and step counts come with them.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.mesh import ALONE, Processes
from dictlearn.update.guard import StepGuard
from dictlearn.update.moments import adam_step, blocks, take_radial, to_sphere


class DictionaryOptimizer(torch.optim.Adam):
    """Adam for the encoder and the bias; what it does to the atoms is up to the rule.

    Parameters belong to one of three groups, by the key ``role``: `atoms` (the one matrix of
    the dictionary), `bias` (its other parameters) and `encoder`, whose tensors either have the
    atoms in dimension 0 or no dimension at all.

    Before every step the learner tells what the rule may need: `set_exact`, `observe` and, where
    `wants_codes`, `observe_codes`.

    Args:
        dictionary_parameters: the atoms `[m, d]` and, if there is one, the bias `[d]`.
        encoder_parameters: of the inference; may be empty.
        lr: rate of the dictionary.
        encoder_lr: rate of the encoder.

    A step whose gradients are not finite is skipped.

    Attributes:
        moves_atoms: whether atoms change; if not, none may be replaced either.
        wants_codes: whether `observe_codes` is to be called.
        guard: tells which steps. How many were skipped is part of the state dict.
        weighs_energy: whether `observe` wants squared codes times the weight of their row. A
            curvature that leaves the weights out is as many times too small as a row is heavy.
        shards: the processes that hold the atoms together; what belongs to atoms is then of
            those of this process.
    """

    moves_atoms: ClassVar[bool] = True
    wants_codes: ClassVar[bool] = False
    weighs_energy: bool = False
    shards: Processes = ALONE

    def __init__(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
        lr: float,
        encoder_lr: float,
    ) -> None:
        self.guard = StepGuard()
        (self.atoms,) = [entry for entry in dictionary_parameters if entry.ndim == 2]
        bias = [entry for entry in dictionary_parameters if entry.ndim != 2]
        groups: list[dict[str, Any]] = [
            {"params": [self.atoms], "lr": lr, "role": "atoms"},
            {"params": bias, "lr": self._bias_rate(lr, encoder_lr), "role": "bias"},
            {"params": list(encoder_parameters), "lr": encoder_lr, "role": "encoder"},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, fused=True)
        # Fused Adam would take gradients that a GradScaler has scaled. Other rules cannot, and
        # clipping could not: the scaler is to scale them back before the step.
        self._step_supports_amp_scaling = False
        self.param_groups[0]["skipped"] = 0

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return lr

    @property
    def skipped(self) -> int:
        """Steps that were not taken because a gradient was not finite."""
        return int(self.param_groups[0]["skipped"])

    @property
    def rate(self) -> float:
        """The rate of the atoms in the coming step, or of what else the rule moves."""
        return float(self.param_groups[0]["lr"])

    def observe(self, energy: Tensor) -> None:
        """Take the mean squared code of every atom, `[m]`, over the rows of the coming step.

        Rules without a curvature do not use it.
        """

    def observe_codes(self, x: Tensor, codes: Codes, weight: Tensor | None = None) -> None:
        """Take the rows `x: [n, d]` of this process and their codes, before the step they are for.

        Only rules with `wants_codes` use it; they sum over processes themselves.

        Args:
            x: hidden states less the bias.
            codes: without a gradient.
            weight: of every row in the loss, `[n]`; 1 if None.
        """

    def set_exact(self, exact: bool) -> None:
        """Say whether the codes of the coming step are exact, and not an encoder's.

        Rules that do not tell these apart do nothing.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and let go of the gradients; return what the closure returned.

        They would else lie there until the next backward pass, of which Lightning's order of
        things only clears them at the door: for all of the forward pass, and for validations.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [entry for group in self.param_groups for entry in group["params"]]
        if self.guard.allows(parameters, self.shards):
            self._update()
        else:
            self.param_groups[0]["skipped"] += 1
            self.forget_observed()
        self.zero_grad()
        return loss

    def forget_observed(self) -> None:
        """Drop what was observed for the coming step, which is not taken."""

    def _update(self) -> None:
        """Move every parameter along its gradient."""
        raise NotImplementedError

    def _adam(self, *roles: str) -> None:
        """Take Adam's step with the parameters of these groups that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"] if group["role"] in roles else ():
                if parameter.grad is not None:
                    adam_step(parameter, self.state[parameter], group, on_sphere=False)

    def _adam_on_sphere(self) -> None:
        self._adam("bias", "encoder")
        if self.atoms.grad is not None:
            adam_step(self.atoms, self.state[self.atoms], self.param_groups[0], on_sphere=True)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take the part along the atom out of the gradient of every atom.

        Changes of length are undone at once, so that part would only fill Adam's moments, and
        the norm that gradients are clipped to: call this before clipping.
        """
        if self.atoms.grad is not None:
            for gradient, atoms in blocks(self.atoms.grad, self.atoms):
                take_radial(gradient, atoms)

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
    def merge_atoms(self, kept: Tensor, gone: Tensor) -> None:
        """Let atoms `kept: [p]` take over the statistics of atoms `gone: [p]`, before these go.

        `kept` may hold an atom more than once; both count the atoms of all shards. Rules without
        statistics of codes do nothing.
        """


class SphereAdam(DictionaryOptimizer):
    """Adam for the atoms too, kept on the sphere.

    The gradient is projected on the tangent space of the atoms, so that no moment is spent on
    changes of length, Adam takes its step (Kingma & Ba 2015, Algorithm 1), and the atoms are
    scaled back to unit norm. All that happens a block of atoms after the other: nothing of the
    size of the dictionary exists beside it, its gradient and the moments.
    """

    def _update(self) -> None:
        self._adam_on_sphere()


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
        self.weighs_energy = mode == "corrected"
        self._observed: list[Tensor] = []

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return encoder_lr

    def observe(self, energy: Tensor) -> None:
        """Take the mean squared codes `[m]`; those of accumulated batches are averaged."""
        self._observed.append(energy.detach())

    def forget_observed(self) -> None:
        """Drop the energies."""
        self._observed.clear()

    def _update(self) -> None:
        self._adam("bias", "encoder")
        self._newton(self.param_groups[0]["lr"])

    def _newton(self, rate: float) -> None:
        """Move the atoms; refuse where no code energies were observed since the last step."""
        gradient = self.atoms.grad
        if gradient is not None:
            self.atoms.addcdiv_(gradient, self._curvature()[:, None], value=-rate)
            to_sphere(self.atoms)

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
        least = self.floor * self.shards.mean(curvature.mean())
        return (curvature + least).clamp_min(torch.finfo(curvature.dtype).tiny)

    @torch.no_grad()
    def reset_atoms(self, indices: Tensor) -> None:
        """Forget some atoms: their energy starts at 0 as in the released code, or at the mean."""
        super().reset_atoms(indices)
        energy = self.state[self.atoms].get("energy")
        if energy is not None:
            energy[indices] = 0.0 if self.mode == "seed" else self.shards.mean(energy.mean())

    @torch.no_grad()
    def merge_atoms(self, kept: Tensor, gone: Tensor) -> None:
        """Add the energies: twins are hardly ever active in the same row, so theirs add up."""
        energy = self.state[self.atoms].get("energy")
        if energy is not None:
            every = self.shards.joined(energy).clone()
            every.index_add_(0, kept, every[gone])
            energy.copy_(every[self.shards.place(len(every))])


def _log_keep(window: int) -> float:
    return float(torch.log1p(torch.tensor(-1.0 / window, dtype=torch.float64)))
