"""Making a cache: every shard once, by whoever is there, and the manifest last.

A shard is made under a lock and noted when it is complete. Whoever is stopped loses the shard he
was at; whoever comes later, or beside, makes what is not there yet. The bytes are the same whoever
makes them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import TokenStates
from dictlearn.hidden_states.cache import locks
from dictlearn.hidden_states.cache import manifest as manifests
from dictlearn.hidden_states.cache.manifest import Manifest, Shard, stored
from dictlearn.hidden_states.cache.plan import SPLITS, Part, Plan, made_plan
from dictlearn.hidden_states.cache.progress import Progress, reporting
from dictlearn.hidden_states.cache.shards import mapped, write_shard
from dictlearn.hidden_states.datamodule import HiddenStateDataModule
from dictlearn.hidden_states.options import Recipe
from dictlearn.hidden_states.statistics import Sums
from dictlearn.storage.atomic import atomic_file, atomic_folder, sweep, write_text

log = logging.getLogger(__name__)

PLAN = "plan.json"
NOTES = "notes"
TEXT = "text"
STATISTICS = "statistics.safetensors"
COPIED = ("tokens.npy", "offsets.npy", "content_hashes.npy", "document_ids.json", "meta.json")


def build(
    data: HiddenStateDataModule, recipe: Recipe, device: torch.device, progress: bool = True
) -> Manifest:
    """Make a cache, or go on with one, or find that it is finished.

    Args:
        data: transformer, text and options.
        recipe: where, how much and in which dtype.
        device: of the transformer.
        progress: whether to tell how far it is.

    Raises:
        InputError: the folder holds something else, or the disk cannot hold the cache.
    """
    folder = Path(recipe.path)
    plan = made_plan(data, recipe, device)
    _prepare(folder, plan)
    while (folder / manifests.NAME).exists():
        if (found := _finished(folder, plan)) is not None:
            return found
    _announce(folder, plan)
    claims = locks.Locks(folder)
    try:
        _write_text(folder / TEXT, data, plan)
        missing = [part for part in plan.parts if _made(folder, part) is None]
        with reporting(progress, sum(part.vectors for part in missing)) as report:
            for wait in (False, True):  # first what nobody is at, then what others did not end
                for part in missing:
                    _make(folder, plan, part, claims, wait, report)
        with claims.take(len(plan.parts), wait=True):
            return _commit(folder, data, plan)
    except OSError as error:
        raise InputError(
            f"The cache in {folder} cannot be written ({error.strerror or error}): what is finished"
            " is kept, and the same command goes on."
        ) from error
    finally:
        claims.close()


def _finished(folder: Path, plan: Plan) -> Manifest | None:
    """Return a finished cache as it is; take it up again where something of it is damaged."""
    written = _written(folder)
    found = manifests.read(folder)
    _refuse_other(folder, found.recipe, plan.described)
    damaged = set()
    for entry in found.entries():
        try:
            manifests.check(folder, entry)
        except InputError as error:
            log.warning("%s", error)
            damaged.add(entry.file)
    if not damaged:
        _tidy(folder)
        log.info("%s is complete, and every file as it was written: nothing to do.", folder)
        return found
    with locks.Locks(folder).alone(len(plan.parts)), suppress(FileNotFoundError):
        if written == _written(folder):  # else another process did
            log.warning("%d files are made again.", len(damaged))
            _take_up(folder, plan, found, damaged)
    return None


def _written(folder: Path) -> tuple[int, int]:
    """Return what tells a manifest from a later one."""
    found = (folder / manifests.NAME).stat()
    return found.st_ino, found.st_mtime_ns


def _take_up(folder: Path, plan: Plan, found: Manifest, damaged: set[str]) -> None:
    """Turn a finished cache into one that is being made, without what is damaged."""
    write_text(folder / PLAN, json.dumps(plan.described, indent=1))
    for shard in (*found.train, *found.validation):
        if shard.file not in damaged:
            _note(folder, shard)
    if any(name.startswith(f"{TEXT}/") for name in damaged):
        shutil.rmtree(folder / TEXT)
    (folder / manifests.NAME).unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove what is of use only while a cache is made."""
    shutil.rmtree(folder / NOTES, ignore_errors=True)
    for name in (PLAN, locks.NAME):
        (folder / name).unlink(missing_ok=True)
    sweep(folder)


def _prepare(folder: Path, plan: Plan) -> None:
    """Make the folder, or check that it is one of ours with the same options."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if PLAN in names:
            _refuse_other(folder, dict(json.loads((folder / PLAN).read_text())), plan.described)
        elif names and manifests.NAME not in names:
            raise InputError(f"path={folder} holds other files: give a new or an empty folder.")
        elif not names:
            write_text(folder / PLAN, json.dumps(plan.described, indent=1))
        sweep(folder)
    except OSError as error:
        raise InputError(f"path={folder} cannot be written: {error.strerror or error}.") from None
    except InputError:
        raise
    except (ValueError, TypeError):  # no UTF-8, no JSON, no mapping
        raise InputError(f"{folder / PLAN} is damaged: delete {folder} and begin anew.") from None


def _refuse_other(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in json.loads(json.dumps(wanted)).items():
        if there.get(key) != value:
            raise InputError(
                f"path={folder} holds a cache with {key}={there.get(key)}, and this one has"
                f" {key}={value}: give another path, or the options of the one that is there."
            )


def _announce(folder: Path, plan: Plan) -> None:
    """Say how much there will be; refuse what the disk cannot hold."""
    missing = [part for part in plan.parts if _made(folder, part) is None]
    store = plan.extractors["train"].store.path
    needed = sum(part.layout.bytes() for part in missing)
    if not (folder / TEXT).exists():
        needed += sum((store / name).stat().st_size for name in COPIED)
    free = shutil.disk_usage(folder).free
    log.info(
        "%s: %d training and %d held-out vectors of width %d in %d layers, %s; %d of %d shards are"
        " to be made, %s, and %s are free.",
        *(folder, plan.vectors("train"), plan.vectors("validation")),
        *(plan.parts[0].layout.width, plan.parts[0].layout.layers, plan.described["dtype"]),
        *(len(missing), len(plan.parts), _size(needed), _size(free)),
    )
    if needed > free:
        raise InputError(
            f"path={folder} needs {_size(needed)} and its disk has {_size(free)} free: give another"
            " path, fewer vectors with max_vectors, or fewer hidden_states.layers."
        )


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def _write_text(folder: Path, data: HiddenStateDataModule, plan: Plan) -> None:
    """Store the tokens, and what every token id reads as: tiny beside the vectors."""
    if folder.is_dir():
        return
    with atomic_folder(folder) as new:
        for name in COPIED:
            shutil.copyfile(data.store.path / name, new / name)
        np.save(new / "token_counts.npy", data.token_counts)
        np.save(new / "validation_blocks.npy", plan.held_out)
        pieces = data.decode_tokens(range(data.transformer.vocabulary_size))
        (new / "pieces.json").write_text(json.dumps(pieces))
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _made(folder: Path, part: Part) -> Shard | None:
    """Return a shard that is complete, None if it is not."""
    try:
        shard = Shard(**json.loads((folder / NOTES / f"{part.name}.json").read_text()))
        there = (folder / part.name).stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return shard if there == shard.bytes else None


def _make(
    folder: Path, plan: Plan, part: Part, claims: locks.Locks, wait: bool, report: Progress
) -> None:
    if _made(folder, part) is not None:
        return
    with claims.take(part.number, wait) as mine:
        if not mine or _made(folder, part) is not None or (folder / manifests.NAME).exists():
            return
        shard = write_shard(folder / part.name, part.layout, _states(plan, part, report))
        _note(folder, shard)


def _note(folder: Path, shard: Shard) -> None:
    write_text(folder / NOTES / f"{shard.file}.json", json.dumps(shard._asdict()))


def _states(plan: Plan, part: Part, report: Progress) -> Iterator[TokenStates]:
    """Make the hidden states of a shard, one forward pass after the other."""
    extractor = plan.extractors[part.split]
    size = extractor.frame.sequences
    for first in range(0, len(part.blocks), size):
        states = extractor.extract(part.blocks[first : first + size])
        yield states
        report(states.vectors.shape[0] * states.vectors.shape[1])


def _commit(folder: Path, data: HiddenStateDataModule, plan: Plan) -> Manifest:
    """Write the manifest, unless somebody has."""
    if (folder / manifests.NAME).exists():
        return manifests.read(folder)
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for part in plan.parts:
        shard = _made(folder, part)
        assert shard is not None, part.name
        shards[part.split].append(shard)
    _merge_statistics(folder, shards["train"])
    texts = sorted(f"{TEXT}/{path.name}" for path in (folder / TEXT).iterdir())
    layout, options = plan.parts[0].layout, data.options
    made = Manifest(
        recipe=plan.described,
        transformer=data.transformer.describe(),
        text={
            "source": data.text.name,
            "block_length": options.block_length,
            "special_tokens": options.special_tokens,
        },
        layers=data.layers,
        hidden_size=layout.width,
        dtype=plan.described["dtype"],
        train=tuple(shards["train"]),
        validation=tuple(shards["validation"]),
        files=tuple(stored(folder, name) for name in (*texts, STATISTICS)),
    )
    manifests.write(folder, made)
    _tidy(folder)
    log.info("%s is complete.", folder)
    return made


def _merge_statistics(folder: Path, shards: list[Shard]) -> None:
    """Add up what the shards say of their vectors, in their order."""
    sums: Sums | None = None
    for shard in shards:
        tensors = mapped(folder / shard.file)
        found = Sums(*(tensors[f"statistics.{name}"] for name in Sums._fields))
        sums = found if sums is None else sums.plus(found)
    assert sums is not None
    with atomic_file(folder / STATISTICS) as file:
        file.write(save({name: value.contiguous() for name, value in sums._asdict().items()}))
