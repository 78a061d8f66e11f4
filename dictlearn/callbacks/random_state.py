"""The states of the random generators of all processes.

Every draw of this library is keyed by (seed, purpose, step) and has no state; these are for what
a user's own callback or module draws.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states(world: int) -> list[dict[str, Any]]:
    """Return the states of every process, by rank, as plain values; called by all of them."""
    mine = _own()
    if world == 1:
        return [mine]
    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def restore_random_state(states: list[dict[str, Any]], rank: int) -> None:
    """Take up the state of this rank; a rank that was not there before keeps its own."""
    if rank >= len(states):
        return
    state = states[rank]
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def _own() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    # Of a GPU in use: to ask another begins with it, also in a run that leaves it alone.
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": [version, list(internal), gauss],
        "numpy": [
            str(name),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state().cpu() if on_cuda else None,
    }
