"""A dictionary in parts: every process keeps some atoms and all that belongs to them.

What is saved is the whole: `state_dict()` of a module in parts, and of its optimizer, joins the
parts on process 0, under the names and in the shapes of a dictionary in one piece, and loading
takes this process's part of such a state. So a checkpoint fits any number of parts. All processes
that share a dictionary must therefore call `state_dict()` together; those that do not write get
their part alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import Inference
from dictlearn.mesh import Mesh, Processes
from dictlearn.prox import Power, Prox, Weighted
from dictlearn.update import Mairal, UpdateRule


class Learned(Protocol):
    """What is learned, and how."""

    dictionary: Dictionary
    prox: Prox
    inference: Inference
    update: UpdateRule


def check_shards(learner: Learned, count: int) -> None:
    """Raise InputError when `count` processes cannot hold or learn the dictionary together."""
    learner.inference.check_shards()
    if isinstance(learner.prox, Weighted | Power):
        raise InputError(
            f"prox={type(learner.prox).__name__.lower()} needs all atoms in one place, which "
            "trainer=dictionary_parallel has not: choose topk, batch_topk, jump, soft or relu."
        )
    if isinstance(learner.update, Mairal):
        raise InputError(
            "update=mairal compares all atoms with all, which trainer=dictionary_parallel has not "
            "in one place: choose update=adam, signum or hessian_diagonal."
        )
    n_atoms = learner.dictionary.n_atoms
    if n_atoms % count:
        fitting = max(1, round(n_atoms / count)) * count
        raise InputError(
            f"dictionary.n_atoms={n_atoms} cannot be shared out evenly over {count} processes "
            f"(trainer.strategy.dictionary_parallel_size): set dictionary.n_atoms={fitting}."
        )


def share_out_learned(learner: Learned, mesh: Mesh) -> None:
    """Keep the atoms of this process and all that belongs to them.

    Args:
        learner: a module with a buffer `idle: [m]`. What its inference learns has the atoms in
            dimension 0, or no dimension at all.
        mesh: who holds what.

    Raises:
        InputError: see `check_shards`.
    """
    check_shards(learner, mesh.dictionary.count)
    dictionary, inference = learner.dictionary, learner.inference
    of_atoms = [name for name, entry in inference.named_parameters() if entry.ndim > 0]
    share_out(dictionary, ["atoms"], mesh)
    share_out(inference, of_atoms, mesh)
    assert isinstance(learner, nn.Module)
    share_out(learner, ["idle"], mesh)
    dictionary.shards = inference.shards = mesh.dictionary


def parts_and_others(
    dictionary: Dictionary, inference: Inference
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that are in parts, and those that all shards hold alike."""
    learned = list(inference.parameters())
    parts = [dictionary.atoms, *(entry for entry in learned if entry.ndim > 0)]
    others = [entry for entry in learned if entry.ndim == 0]
    return parts, others if dictionary.bias is None else [dictionary.bias, *others]


@torch.no_grad()
def share_out(module: nn.Module, names: Iterable[str], mesh: Mesh) -> None:
    """Keep the rows of this process of some parameters and buffers `[m, ...]` of a module.

    Args:
        module: whose state dict is that of the whole from now on.
        names: of parameters and buffers, as in the state dict.
        mesh: who holds what.
    """
    sizes: dict[str, int] = {}
    for name in names:
        tensor = _found(module, name)
        sizes[name] = len(tensor)
        tensor.data = tensor.data[mesh.dictionary.place(len(tensor))].clone()

    def join(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in sizes:
            state[prefix + name] = whole(state[prefix + name], mesh)

    def part(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for name, size in sizes.items():
            if prefix + name in state:
                state[prefix + name] = own_part(state[prefix + name], size, mesh.dictionary)

    module.register_state_dict_post_hook(join)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(part)  # type: ignore[no-untyped-call]


def share_out_state(
    optimizer: torch.optim.Optimizer, dictionary: Dictionary, inference: Inference, mesh: Mesh
) -> None:
    """Let the state dict of an optimizer of a dictionary in parts be that of the whole."""
    known = {id(parameter) for parameter in parts_and_others(dictionary, inference)[0]}
    every = [entry for group in optimizer.param_groups for entry in group["params"]]
    sizes = {
        number: len(entry) * mesh.dictionary.count
        for number, entry in enumerate(every)
        if id(entry) in known
    }

    def join(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return _changed(state, sizes, lambda tensor, _: whole(tensor, mesh))

    def part(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return _changed(state, sizes, lambda tensor, m: own_part(tensor, m, mesh.dictionary))

    optimizer.register_state_dict_post_hook(join)
    optimizer.register_load_state_dict_pre_hook(part)


def _changed(state: dict[str, Any], sizes: dict[int, int], change: Any) -> dict[str, Any]:
    """Return an optimizer's state dict with the tensors of the numbered parameters changed."""
    entries = dict(state["state"])
    for number in sorted(sizes.keys() & entries.keys()):  # all send in the same order
        entries[number] = {
            name: change(value, sizes[number])
            if isinstance(value, Tensor) and value.ndim > 0
            else value
            for name, value in entries[number].items()
        }
    return {**state, "state": entries}


def own_part(tensor: Tensor, size: int, shards: Processes) -> Tensor:
    """Return the rows of this process of a whole of `size` rows; what is no whole stays."""
    return tensor[shards.place(size)] if len(tensor) == size else tensor


@torch.no_grad()
def whole(part: Tensor, mesh: Mesh) -> Tensor:
    """Return all rows, on the CPU, to process 0; to all others their part.

    One part after the other comes by the device, so that no device need have room for the whole.
    """
    shards = mesh.dictionary
    if mesh.data.rank > 0:
        return part
    # After a run the module is on the CPU, where NCCL cannot fetch it; gloo can only there. And
    # not every backend sends every type of number, but all send bytes.
    way = "cuda" if distributed.get_backend(shards.group) == "nccl" else "cpu"
    mine = part.detach().to(way).contiguous()
    if shards.rank > 0:
        distributed.send(mine.view(torch.uint8), group=shards.group, group_dst=0)
        return part
    parts = [mine.cpu()]
    for other in range(1, shards.count):
        received = torch.empty_like(mine)
        distributed.recv(received.view(torch.uint8), group=shards.group, group_src=other)
        parts.append(received.cpu())
    return torch.cat(parts)


def _found(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), last)
    return tensor


@torch.no_grad()
def average_gradients(dictionary: Dictionary, inference: Inference, mesh: Mesh) -> None:
    """Replace gradients by their means over the processes with rows of their own.

    What all processes hold alike has the same gradient on all shards, but for rounding on unequal
    hardware; there the mean is over all processes, so that it stays alike.
    """
    data = mesh.data
    gradients, alike = _gradients(dictionary, inference)
    if not data.alone:
        waiting = [
            distributed.all_reduce(gradient, group=data.group, async_op=True)
            for gradient in gradients
        ]
        for handle, gradient in zip(waiting, gradients, strict=True):
            if handle is not None:
                handle.wait()
            gradient /= data.count
    if alike:
        flat = torch.cat([gradient.flatten() for gradient in alike])
        distributed.all_reduce(flat)
        flat /= data.count * mesh.dictionary.count
        sizes = [gradient.numel() for gradient in alike]
        for gradient, mean in zip(alike, flat.split_with_sizes(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def clip_by_norm(dictionary: Dictionary, inference: Inference, largest: float) -> None:
    """Scale all gradients so that the norm of the whole gradient is at most `largest`.

    Numbers that are not above 0 do nothing, as in Lightning.
    """
    if largest <= 0:
        return
    own, alike = _gradients(dictionary, inference)
    none = dictionary.atoms.new_zeros(())
    square = dictionary.shards.total(sum((entry.square().sum() for entry in own), none))
    square = square + sum((entry.square().sum() for entry in alike), none)
    factor = (largest / (square.sqrt() + 1e-6)).clamp_max(1.0)
    for gradient in (*own, *alike):
        gradient *= factor


def _gradients(dictionary: Dictionary, inference: Inference) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of what is in parts, and of what all shards hold alike."""
    parts, others = parts_and_others(dictionary, inference)
    return (
        [entry.grad for entry in parts if entry.grad is not None],
        [entry.grad for entry in others if entry.grad is not None],
    )
