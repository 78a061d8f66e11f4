"""Where a model's files are, and reading them: config, tokenizer, weights.

A folder is read without ever asking the network. A hub id is read from the local cache; what is
not there is downloaded, after one bounded question whether the hub answers at all (transformers
itself repeats a failed request for up to half a minute per file).
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dictlearn.errors import InputError, nearest
from dictlearn.outage import is_outage, short_silences
from dictlearn.transformer.embedded import EMBEDDED, check_embedded, embedded_folder, file_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

T = TypeVar("T")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ANSWER_SECONDS = 10.0
_OFFLINE = (
    "download its files where there is a network (hf download {path} --local-dir FOLDER), copy the"
    " folder here and set transformer.path=FOLDER"
)


@dataclass(frozen=True)
class Source:
    """A model's place: a folder, or a name on the hub.

    Attributes:
        path: `transformer.path` as it was given.
        folder: the folder with its files; None for a hub id.
        revision: branch, tag or commit on the hub; None = what the cache has, else the newest.
    """

    path: str
    folder: Path | None
    revision: str | None

    @property
    def lasting_path(self) -> str:
        """`path` as it can be found from any directory: a folder of the user's, in full."""
        if self.folder is None or self.path == EMBEDDED:
            return self.path
        return str(self.folder.resolve())

    def config(self) -> PretrainedConfig:
        """Return the model's configuration (reads ``config.json`` only).

        Raises:
            InputError: it cannot be read, or the hub does not answer.
        """
        from transformers import AutoConfig

        config: PretrainedConfig = self._read("config.json", AutoConfig.from_pretrained)
        return config

    def pinned(self) -> Source:
        """Return this source at the very commit its config came from: later reads fit to it."""
        if self.folder is not None:
            return self
        return replace(self, revision=self._cached_folder().name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's fast tokenizer.

        Raises:
            InputError: there is none.
        """
        from transformers import AutoTokenizer

        def fast_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **options)
            # Without tokenizer files transformers 5 returns one that knows no word at all.
            words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
            if not tokenizer.is_fast or not words:
                raise OSError("it has no tokenizer.json")
            return tokenizer

        return self._read("a fast tokenizer", fast_tokenizer)

    def model(self, config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
        """Return the base model without pooler and head, in evaluation mode, on the CPU.

        Args:
            config: what `config()` returned.
            dtype: number format of its weights.

        Raises:
            InputError: weights are missing, broken, or those of another architecture.
        """
        from transformers import AutoModel

        config = copy.deepcopy(config)
        config.use_cache = config.output_hidden_states = False
        config.return_dict = True
        options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
        if _can_leave_out_pooler(config):
            options["add_pooling_layer"] = False

        def weights(name: str, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
            with _quiet():
                found: tuple[nn.Module, dict[str, Any]]
                found = AutoModel.from_pretrained(name, **options, **more)
                return found

        model, report = self._read("weights", weights)
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise InputError(
                f"transformer.path={self.path}: {len(missing)} of the model's parameters are not in"
                f" its weights file (the first: {missing[0]}): config.json and weights do not"
                " belong together."
            )
        return model.eval().requires_grad_(False)

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the weights file; of several: that of their `sha256sum` listing.

        Raises:
            InputError: the embedded weights are not the known ones.
        """
        if self.path == EMBEDDED and self.folder is not None:
            return check_embedded(self.folder)
        folder = self.folder or self._cached_folder()
        first = next(folder / name for name in WEIGHTS if (folder / name).is_file())
        if first.suffix != ".json":
            return file_sha256(first)
        kind = "*.safetensors" if "safetensors" in first.name else "*.bin"
        lines = (f"{file_sha256(file)}  {file.name}\n" for file in sorted(folder.glob(kind)))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _cached_folder(self) -> Path:
        """Return the folder of a hub model in the cache, ``.../snapshots/<commit>``."""
        from transformers.utils.hub import cached_file

        config = cached_file(
            self.path, "config.json", revision=self.revision or "main", local_files_only=True
        )
        return Path(str(config)).parent

    def _read(self, what: str, load: Callable[..., T]) -> T:
        """Return ``load(name, ...)`` from the folder, from the cache, or from the hub."""
        options = {"revision": self.revision or "main", "trust_remote_code": False}
        name = str(self.folder or self.path)
        with _told(self.path, what):
            try:
                return load(name, local_files_only=True, **options)
            except Exception as error:  # not in the cache, which transformers says in several ways
                if self.folder is not None or isinstance(error, MemoryError):
                    raise
            self._ask_hub()
            try:
                with short_silences():
                    return load(name, local_files_only=False, **options)
            except Exception as error:  # transformers has its own for what the network does
                if not is_outage(error):
                    raise
                raise InputError(
                    f"transformer.path={self.path}: {what} broke off while it was downloaded: run"
                    f" again later, or {_OFFLINE.format(path=self.path)}."
                ) from error

    def _ask_hub(self) -> None:
        """Ask the hub for the model, once and for at most `_ANSWER_SECONDS` per connection."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        offline = _OFFLINE.format(path=self.path)
        try:
            HfApi().model_info(self.path, revision=self.revision, timeout=_ANSWER_SECONDS)
        except RevisionNotFoundError as error:
            raise InputError(
                f"transformer.revision={self.revision} does not exist for {self.path}."
            ) from error
        except RepositoryNotFoundError as error:
            raise InputError(
                f"transformer.path={self.path} is neither a folder here nor a model that the hub"
                f" shows you{_neighbour(Path(self.path))}"
            ) from error
        except Exception as error:  # every transport of the hub has its own kinds of failure
            raise InputError(
                f"transformer.path={self.path} is no folder here and the model hub does not answer"
                f" ({first_line(error)}): {offline}.{_neighbour(Path(self.path))}"
            ) from error


def locate(path: str, revision: str | None, local_only: bool = False) -> Source:
    """Return where the model `path` is; no network.

    Args:
        path: ``embedded``, a folder, or a hub id.
        revision: of a hub id.
        local_only: never take `path` for a hub id.

    Raises:
        InputError: the folder is missing or is not a model's folder.
    """
    folder = embedded_folder() if path == EMBEDDED else _folder(path, local_only)
    if folder is None:
        return Source(path, None, revision)
    if revision is not None:
        raise InputError(
            f"transformer.revision={revision} names a version on the hub, but transformer.path="
            f"{path} is on this machine: leave the revision out."
        )
    _check_folder(path, folder)
    return Source(path, folder, None)


def _folder(path: str, local_only: bool) -> Path | None:
    """Return the folder that `path` means, None for a hub id (``name`` or ``owner/name``)."""
    folder = Path(path).expanduser()
    if local_only:
        return folder
    hub_like = path.count("/") <= 1 and not path.startswith((".", "~", "/")) and path[-1:] != "/"
    return None if hub_like and "\\" not in path and not folder.exists() else folder


def _check_folder(path: str, folder: Path) -> None:
    if not folder.is_dir():
        wrong = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"transformer.path={path} {wrong}.{_neighbour(folder)}")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"transformer.path={path} holds no config.json: give the folder of a Hugging Face"
            " model (config.json, tokenizer.json, model.safetensors)."
        )
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise InputError(
            f"transformer.path={path} holds no weights: expected model.safetensors or"
            " pytorch_model.bin (or the .index.json of several of them)."
        )


def _neighbour(folder: Path) -> str:
    """Return `` Did you mean ...?`` for the sibling with the most similar name."""
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else iter(())
    names = {entry.name: str(entry) for entry in siblings if entry.is_dir()}
    names.setdefault(EMBEDDED, EMBEDDED)
    return nearest(folder.name, names)


@contextmanager
def _told(path: str, what: str) -> Iterator[None]:
    """Turn the ways in which reading a model fails into one sentence."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a broken file fails in any way, down to IndexError in a pickle
        raise InputError(
            f"transformer.path={path}: {what} cannot be read from it: {first_line(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' progress bar and its table of heads that we leave out on purpose."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _can_leave_out_pooler(config: PretrainedConfig) -> bool:
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    return inspect.isclass(found) and "add_pooling_layer" in inspect.signature(found).parameters


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind, in 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
