"""What a user can say about hidden states, live or stored; torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from dictlearn.errors import InputError, choice, flag, number, whole_number

NORMALIZATIONS = ("none", "center", "unit_scale", "center_unit_scale")
SPECIAL_TOKENS = ("none", "model")
ON_DAMAGE = ("stop", "skip")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_AT_LEAST_ONE = ("batch_size", "block_length", "lanes", "sequences_per_block", "statistics_tokens")


@dataclass(frozen=True)
class StreamOptions:
    """Options of the live stream (`conf/hidden_states/stream.yaml`), checked when they are made.

    Attributes:
        layers: ``all``, ``every_second`` or a list of indices of `hidden_states`
            (0 = the embedding output).
        batch_size: vectors per training batch and process.
        block_length: tokens of text per sequence.
        normalization: per layer: ``none``, ``center``, ``unit_scale`` (E |x|^2 = 1) or
            ``center_unit_scale``.
        token_weight_exponent: a row weighs `count(token) ** -exponent`; 0 = all rows alike,
            1/2 = Yun et al. 2021.
        normalize_weights: scale the weights to mean 1 over the training text.
        special_tokens: ``model`` puts the model's own special tokens around every sequence,
            ``none`` puts nothing.
        keep_special: whether those special tokens become vectors too.
        cross_documents: whether a sequence may go on with the next document.
        lanes: independent streams that are mixed in every batch; the number of processes
            divides it. The order of the data depends on it, never on the number of processes.
        sequences_per_block: sequences of a lane whose vectors are shuffled together.
        validation_vectors: largest number of held-out vectors.
        statistics_tokens: tokens on which means and scales are measured.
        prefetch: compute the next block in the background; takes twice the memory.
        max_non_finite: tokens that are left out because a hidden state of theirs is not finite,
            before the run gives up; the processes tell each other of theirs at every checkpoint.
        max_norm: tokens are left out that have a hidden state more than so many times as long as
            the median of its layer (attention sinks); None: none are.

    Raises:
        InputError: a value is not allowed.
    """

    layers: str | Sequence[int] = "all"
    batch_size: int = 1024
    block_length: int = 64
    normalization: str = "center_unit_scale"
    token_weight_exponent: float = 0.0
    normalize_weights: bool = True
    special_tokens: str = "model"
    keep_special: bool = False
    cross_documents: bool = False
    lanes: int = 8
    sequences_per_block: int = 32
    validation_vectors: int = 32768
    statistics_tokens: int = 8192
    prefetch: bool = True
    max_non_finite: int = 100
    max_norm: float | None = 10.0

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            self._set(name, whole_number(f"hidden_states.{name}", getattr(self, name)))
        for name in ("validation_vectors", "max_non_finite"):
            self._set(name, whole_number(f"hidden_states.{name}", getattr(self, name), 0))
        choice("hidden_states.normalization", self.normalization, NORMALIZATIONS)
        choice("hidden_states.special_tokens", self.special_tokens, SPECIAL_TOKENS)
        number("hidden_states.token_weight_exponent", self.token_weight_exponent, 0.0)
        if self.max_norm is not None:
            self._set("max_norm", number("hidden_states.max_norm", self.max_norm, 1.0))
        for field in fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise InputError(f"hidden_states.{field.name} must be true or false.")
        if not isinstance(self.layers, str | Sequence):
            raise InputError(
                f"hidden_states.layers={self.layers} must be all, every_second or a list like"
                f" [{self.layers}]."
            )
        if not isinstance(self.layers, str):
            self._set("layers", tuple(self.layers))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class CachedOptions:
    """Options of a run on stored hidden states (`conf/hidden_states/cached.yaml`), checked.

    Attributes:
        path: a folder that ``dictlearn cache`` wrote, or a file of vectors `[N, d]`.
        layers: ``all`` that are stored, or a list of them. The vectors of a plain file are of one
            layer: 0, or the one that is given.
        batch_size: vectors per training batch and process.
        normalization: as in `StreamOptions`.
        token_weight_exponent: as in `StreamOptions`; the counts are those of the training text.
        normalize_weights: as in `StreamOptions`.
        validation_vectors: largest number of held-out vectors.
        validation_fraction: share of the rows of a plain file that is held out; a cache has the
            held-out documents of its text.
        max_norm: as in `StreamOptions`, for a plain file; a cache was made with one of its own.
        verify: check the digest of every shard of a cache when it is first read.
        on_damage: ``stop`` at a damaged shard, or ``skip`` it (all are checked at the start then).
        prefetch: read the next batch in the background.

    Raises:
        InputError: a value is not allowed.
    """

    path: str
    layers: str | Sequence[int] = "all"
    batch_size: int = 1024
    normalization: str = "center_unit_scale"
    token_weight_exponent: float = 0.0
    normalize_weights: bool = True
    validation_vectors: int = 32768
    validation_fraction: float = 0.05
    max_norm: float | None = 10.0
    verify: bool = True
    on_damage: str = "stop"
    prefetch: bool = True

    def __post_init__(self) -> None:
        name = "hidden_states."
        for key, least in (("batch_size", 1), ("validation_vectors", 0)):
            value = whole_number(name + key, getattr(self, key), least)
            object.__setattr__(self, key, value)
        for key in ("normalize_weights", "verify", "prefetch"):
            flag(name + key, getattr(self, key))
        choice(name + "normalization", self.normalization, NORMALIZATIONS)
        choice(name + "on_damage", self.on_damage, ON_DAMAGE)
        number(name + "token_weight_exponent", self.token_weight_exponent, 0.0)
        number(name + "validation_fraction", self.validation_fraction, 0.0, 0.9)
        if self.max_norm is not None:
            object.__setattr__(self, "max_norm", number(name + "max_norm", self.max_norm, 1.0))
        if not self.path or not isinstance(self.path, str):
            raise InputError(
                "hidden_states.path must be a folder that dictlearn cache wrote, or a .npy, .pt or "
                ".safetensors file of vectors."
            )
        if not isinstance(self.layers, str):
            if not isinstance(self.layers, Sequence):
                raise InputError(
                    f"hidden_states.layers={self.layers} must be all or a list like"
                    f" [{self.layers}]."
                )
            object.__setattr__(self, "layers", tuple(self.layers))


@dataclass(frozen=True)
class Recipe:
    """What ``dictlearn cache`` is told (`conf/cache.yaml`), checked when it is made.

    Attributes:
        path: folder of the cache.
        dtype: of the stored vectors; ``auto``: the transformer's compute dtype.
        max_vectors: training vectors, at most; None: those of all the training text.
        max_validation_vectors: held-out vectors, at most; None: all.
        shard_vectors: vectors per file, about.
        seed: of the choice of text blocks, where not all are wanted.

    Raises:
        InputError: a value is not allowed.
    """

    path: str
    dtype: str = "auto"
    max_vectors: int | None = None
    max_validation_vectors: int | None = None
    shard_vectors: int = 262144
    seed: int = 0

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        if not self.path or not isinstance(self.path, str):
            raise InputError("path must be the folder of the cache: give path=FOLDER.")
        for key, least in (
            *(("max_vectors", 1), ("max_validation_vectors", 0)),
            *(("shard_vectors", 1), ("seed", 0)),
        ):
            value = getattr(self, key)
            if value is not None or key in ("shard_vectors", "seed"):
                object.__setattr__(self, key, whole_number(key, value, least))
