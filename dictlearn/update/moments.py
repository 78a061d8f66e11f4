"""Adam a block of atoms at a time, its first moment in 16 bits.

Legend: m atoms or rows, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CACHED = 2**17
"""Numbers of a block on a CPU: what a step needs of them stays in its cache."""

AT_ONCE = 2**24
"""Numbers of a block on a GPU: 64 MiB of room for a moment in full precision."""


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of all tensors, a block after the other; vectors are one block."""
    first = tensors[0]
    if first.ndim < 2:
        yield tensors
        return
    numbers = CACHED if first.device.type == "cpu" else AT_ONCE
    rows = numbers // max(1, first[:1].numel()) + 1
    yield from zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def first_moment(parameter: Tensor) -> Tensor:
    """Return zeros for the running mean of a parameter's gradients.

    For float32 matrices in bfloat16, which is a quarter of Adam's memory less. A step changes the
    mean by a tenth of itself or of the gradient, 25 times the distance of neighbouring bfloat16
    numbers, so that no change is lost by rounding. The second moment stays as it is: it changes
    by thousandths.
    """
    short = parameter.ndim == 2 and parameter.dtype == torch.float32
    return torch.zeros_like(parameter, dtype=torch.bfloat16 if short else parameter.dtype)


def kept_moment(state: dict[str, Any], parameter: Tensor) -> Tensor:
    """Return the first moment of a state, created if it is not there.

    A state dict that was loaded has it in the dtype of the parameter, by torch's rule.
    """
    new = first_moment(parameter) if "exp_avg" not in state else None
    if new is None and parameter.ndim == 2 and parameter.dtype == torch.float32:
        new = state["exp_avg"].bfloat16()
    if new is not None:
        state["exp_avg"] = new
    moment: Tensor = state["exp_avg"]
    return moment


@torch.no_grad()
def adam_step(
    parameter: Tensor, state: dict[str, Any], group: dict[str, Any], on_sphere: bool
) -> None:
    """Take a step of Adam (Kingma & Ba 2015, Algorithm 1) with one parameter.

    Args:
        parameter: with a gradient.
        state: of this parameter: ``step``, ``exp_avg`` and ``exp_avg_sq``; filled if empty.
        group: with ``lr``, ``betas`` and ``eps``.
        on_sphere: whether the rows `[m, d]` keep unit norm: their gradient loses the part along
            them, in place, and they are scaled back.
    """
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    beta1, beta2 = group["betas"]
    moment = kept_moment(state, parameter)
    for p, g, mean, square in blocks(parameter, gradient, moment, state["exp_avg_sq"]):
        full = mean.to(p.dtype)
        if on_sphere:
            take_radial(g, p)
        torch._fused_adam_(
            [p],
            [g],
            [full],
            [square],
            [],
            [state["step"]],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        if full is not mean:
            mean.copy_(full)
        if on_sphere:
            to_sphere(p)


def take_radial(gradient: Tensor, atoms: Tensor) -> None:
    """Take the part along unit rows `atoms: [m, d]` out of their gradient, in place."""
    gradient.addcmul_(torch.linalg.vecdot(gradient, atoms)[:, None], atoms, value=-1)


def to_sphere(atoms: Tensor) -> None:
    """Scale rows `[m, d]` to unit norm, in place."""
    length = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    atoms.div_(length.clamp_min_(1e-12))
