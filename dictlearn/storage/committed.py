"""Which checkpoints of a run are whole: a small manifest beside each, written last.

No tensor format notices a flipped bit, so that every checkpoint has a digest. A checkpoint counts
from the moment its manifest is there; what has none was never finished. There is one manifest for
every checkpoint: a damaged one takes no other checkpoint with it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from dictlearn.storage.atomic import sweep, temporary_of, write_text

log = logging.getLogger(__name__)

SUFFIX = ".ckpt"
LAST = f"last{SUFFIX}"
_CHUNK = 2**22


class Committed(NamedTuple):
    """A checkpoint that was finished.

    Attributes:
        path: of the checkpoint.
        step: training steps done.
        number: counts the checkpoints of a run, so that the newest is known.
        size: bytes.
        digest: xxh3_64, in hexadecimal.
    """

    path: Path
    step: int
    number: int
    size: int
    digest: str

    @property
    def manifest(self) -> Path:
        """The file that says so."""
        return manifest_of(self.path)


def manifest_of(path: Path) -> Path:
    """Return the manifest's place for a checkpoint's."""
    return path.with_suffix(".json")


def commit(path: Path, step: int, number: int, digest: str) -> Committed:
    """Declare a checkpoint finished.

    Args:
        path: of the checkpoint, written and flushed.
        step: training steps done.
        number: higher than that of every earlier checkpoint of the run.
        digest: xxh3_64 of the file, in hexadecimal.
    """
    entry = Committed(path, step, number, path.stat().st_size, digest)
    fields: dict[str, object] = {
        "file": path.name,
        "step": step,
        "number": number,
        "bytes": entry.size,
        "xxh3_64": digest,
    }
    write_text(entry.manifest, _manifest(fields))
    return entry


def committed(folder: Path) -> list[Committed]:
    """Return the checkpoints whose manifests are whole, the newest first; a warning for others.

    The newest is what was written last: of a run that went on from an earlier one, since a later
    one was damaged, that later one is not.
    """
    entries = [entry for entry in map(_read, sorted(folder.glob("*.json"))) if entry is not None]
    return sorted(entries, key=lambda entry: entry.number, reverse=True)


def newest_whole(folder: Path) -> Committed | None:
    """Return the newest checkpoint that is as it was written; a warning for every newer one."""
    for entry in committed(folder):
        fault = _fault(entry)
        if fault is None:
            return entry
        log.warning("%s is left out: %s.", entry.path, fault)
    return None


def remove(entry: Committed) -> None:
    """Delete a checkpoint: its manifest first, so that no manifest is ever without its file."""
    entry.manifest.unlink(missing_ok=True)
    entry.path.unlink(missing_ok=True)


def superseded(entries: list[Committed], keep: int, best: str) -> list[Committed]:
    """Return what may go: all but the newest `keep`, and what was the best before `best`."""
    bests = [entry for entry in entries if entry.path.name.startswith("best-")]
    others = [entry for entry in entries if entry not in bests]
    return others[keep:] + [entry for entry in bests if best and entry.path.name != best]


def failure_of(actions: Iterable[Callable[[], object]]) -> OSError | None:
    """Do one after the other; return the OSError at which that ended, if any."""
    try:
        for do in actions:
            do()
    except OSError as error:
        return error
    return None


def not_written(path: Path, failure: OSError) -> str:
    """Return a sentence about a checkpoint that could not be written, with what room there is."""
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    sizes = [entry.size for entry in committed(path.parent)]
    needed = f" of about {sizes[0] / 1e6:,.1f} MB" if sizes else ""
    return (
        f"The checkpoint {path}{needed} could not be written "
        f"({failure.strerror or failure}; {free / 1e6:,.1f} MB are free there): the run goes on, "
        "and the earlier ones are as they were."
    )


def also_known_as(entry: Committed, name: str) -> Path:
    """Give a checkpoint a second name without a second copy, where the file system can."""
    target = entry.path.with_name(name)
    temporary = temporary_of(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(entry.path, temporary)
    except OSError:
        shutil.copyfile(entry.path, temporary)
    temporary.replace(target)
    return target


def tidy(folder: Path) -> None:
    """Delete what killed processes left: temporary files, and checkpoints that never counted."""
    sweep(folder)
    known = {entry.path for entry in committed(folder)}
    for path in _checkpoints(folder):
        if path not in known and path.name != LAST and not manifest_of(path).exists():
            path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob(f"*{SUFFIX}"))


def _read(manifest: Path) -> Committed | None:
    """Return what a manifest says, or None if it is damaged."""
    try:
        content = manifest.read_text(encoding="utf-8")
        fields = json.loads(content)
        del fields["manifest_xxh3_64"]
        if content != _manifest(fields) or Path(fields["file"]).stem != manifest.stem:
            raise ValueError
        numbers = (int(fields["step"]), int(fields["number"]), int(fields["bytes"]))
        return Committed(manifest.with_name(fields["file"]), *numbers, str(fields["xxh3_64"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s is damaged: its checkpoint is left out.", manifest)
        return None


def _fault(entry: Committed) -> str | None:
    """Return what is wrong with a checkpoint, in a few words."""
    if not entry.path.is_file():
        return "it is gone"
    try:
        size = entry.path.stat().st_size
        if size != entry.size:
            return f"it has {size:,} of {entry.size:,} bytes"
        found = digest_of_file(entry.path)
    except OSError as error:  # a bad block of the disk, say
        return f"it cannot be read ({error.strerror or error})"
    return None if found == entry.digest else f"its digest is {found}, not {entry.digest}"


def digest_of_file(path: Path) -> str:
    """Return the xxh3_64 of a file, in hexadecimal."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest(fields: dict[str, object]) -> str:
    """Return the text of a manifest, which holds a digest of itself."""
    digest = xxhash.xxh3_64(json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, "manifest_xxh3_64": digest}, indent=2) + "\n"
