"""Hidden states out of a running transformer, which stops after the last one that is asked for.

Legend: L tapped layers, b sequences, t tokens, d width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dictlearn.errors import InputError
from dictlearn.transformer.source import first_line

_log = logging.getLogger(__name__)


class _Enough(Exception):  # noqa: N818 - not an error: the forward pass has said all we asked
    """Leaves a forward pass whose remaining blocks nobody needs."""


class _Untappable(Exception):  # noqa: N818 - caught by the check at loading, never shown
    """A block's input does not have the shape of a hidden state."""


class TappedModel:
    """A transformer of Hugging Face and its blocks: `hidden_states[i]` is the input of block i.

    That this holds is checked once, on six tokens against the model's own
    ``output_hidden_states=True``; a model for which it does not hold (ALBERT's shared layers) is
    asked for its own, without the early exit.

    Args:
        model: base model without head, in evaluation mode.
        n_layers: number of its layers.
        path: `transformer.path`, for messages.

    Raises:
        InputError: the model does not run on token ids alone, or counts its layers otherwise.
    """

    def __init__(self, model: nn.Module, n_layers: int, path: str) -> None:
        self.model, self.n_layers = model, n_layers
        self._blocks: nn.ModuleList | None = None
        device = next(model.parameters()).device
        ids = torch.arange(1, 7, device=device).reshape(2, 3)
        with torch.inference_mode():
            own = self._own_states(ids, torch.ones_like(ids), path)
            for blocks in self._candidates():
                if self._agrees(blocks, ids, own):
                    self._blocks = blocks
                    return
        _log.info("transformer %s: no early exit, its blocks do not show its hidden states", path)

    @property
    def exits_early(self) -> bool:
        """Whether a forward pass ends after the last tapped layer."""
        return self._blocks is not None

    def fill(self, out: Tensor, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> None:
        """Write the hidden states of `layers` to `out: [L, b, t, d]`.

        Args:
            out: where they go, in the order of `layers`.
            ids: token ids `[b, t]` on the model's device.
            mask: 1 for real tokens, 0 for padding, `[b, t]`.
            layers: indices of `hidden_states`.
        """
        if self._blocks is None:
            own = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            for row, layer in enumerate(layers):
                out[row].copy_(own.hidden_states[layer])
        else:
            self._tap(self._blocks, out, ids, mask, layers)

    def _tap(
        self,
        blocks: nn.ModuleList,
        out: Tensor,
        ids: Tensor,
        mask: Tensor,
        layers: Sequence[int],
    ) -> None:
        rows = {layer: row for row, layer in enumerate(layers)}
        deepest = max(rows)
        hooks = {
            blocks[layer]: _writer(out[row], stop=layer == deepest)
            for layer, row in rows.items()
            if layer < self.n_layers
        }
        try:
            with _hooked(hooks):
                result = self.model(input_ids=ids, attention_mask=mask)
            out[rows[self.n_layers]].copy_(result.last_hidden_state)
        except _Enough:
            pass

    def _own_states(self, ids: Tensor, mask: Tensor, path: str) -> Tensor:
        """Return all hidden states as the model itself gives them, `[L, b, t, d]`."""
        try:
            result = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"transformer.path={path} does not run on token ids alone ({first_line(error)}):"
                " give a BERT-type encoder or a GPT-type decoder."
            ) from error
        own = result.hidden_states
        if len(own) != self.n_layers + 1 or len({states.shape for states in own}) > 1:
            raise InputError(
                f"transformer.path={path} gives {len(own)} hidden states for {self.n_layers}"
                " layers, not one more of equal shape: give a BERT-type or GPT-type model."
            )
        return torch.stack(list(own))

    def _candidates(self) -> Iterator[nn.ModuleList]:
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.n_layers:
                yield module

    def _agrees(self, blocks: nn.ModuleList, ids: Tensor, own: Tensor) -> bool:
        """Whether the taps show the model's own hidden states, bit for bit."""
        out = torch.full_like(own, torch.nan)
        try:
            self._tap(blocks, out, ids, torch.ones_like(ids), range(self.n_layers + 1))
        except _Untappable:
            return False
        return torch.equal(out, own)


def _writer(target: Tensor, stop: bool) -> Callable[..., None]:
    """Return a forward pre-hook that copies a block's input to `target: [b, t, d]`."""

    def write(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor) or hidden.shape != target.shape:
            raise _Untappable
        target.copy_(hidden)
        if stop:
            raise _Enough

    return write


@contextmanager
def _hooked(hooks: dict[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Hold forward pre-hooks on modules; they are gone afterwards, also after an error."""
    handles = [
        block.register_forward_pre_hook(hook, with_kwargs=True) for block, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
