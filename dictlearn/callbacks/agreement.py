"""What one process knows becomes what all processes know, one step later and without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


class Agreement:
    """The largest of the flags of all processes, asked at one step and answered at the next.

    The flags travel while the step is computed, in a gloo group of their own: on CPUs also where
    training talks by NCCL, so that no step waits for the GPU. All processes must ask equally often.

    Args:
        world: number of processes; the group is made here, by all of them.
        n_flags: flags of one question.
    """

    def __init__(self, world: int, n_flags: int) -> None:
        self._group: ProcessGroup | None = None
        if world > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        self._flags = torch.zeros(n_flags, dtype=torch.int64)
        self._work: Any = None

    def ask(self, flags: Sequence[int]) -> list[int]:
        """Return the largest flags of the question before; of one process, of this question."""
        if self._group is None:
            return [int(flag) for flag in flags]
        answer = self._answer()
        self._flags = torch.tensor([int(flag) for flag in flags])
        self._work = torch.distributed.all_reduce(
            self._flags, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        return [int(flag) for flag in answer]

    def close(self) -> None:
        """Wait for the question under way; after an error nobody may be there to answer it."""
        self._answer()

    def _answer(self) -> Tensor:
        if self._work is None:
            return torch.zeros_like(self._flags)
        self._work.wait()
        self._work = None
        return self._flags
