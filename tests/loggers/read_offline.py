"""Reads a W&B run back from its `.wandb` file.

The file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB with fragments of records,
each led by checksum, length and kind; a record is a protobuf message of W&B.
"""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, LEAD = 7, 32768, 7
PADDING, FULL, LAST = 0, 1, 4


class OfflineRun(NamedTuple):
    run_id: str
    project: str
    group: str
    name: str
    tags: list[str]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    artifacts: list[Any]
    exit_codes: list[int]


def read_offline(folder: Path, kind: str = "offline-run") -> OfflineRun:
    """Read the only run of a kind below a run directory, once W&B has written its end.

    Args:
        folder: the run directory.
        kind: "offline-run", or "run" for what an online run keeps here.
    """
    (path,) = (folder / "wandb").glob(f"{kind}-*/run-*.wandb")
    deadline = time.monotonic() + 20
    # W&B's service closes the file a moment after it has said that the run is finished.
    while not any(record.HasField("exit") for record in _records(path.read_bytes())):
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.02)
    records = list(_records(path.read_bytes()))
    (run,) = [record.run for record in records if record.HasField("run")]
    config = _values(run.config.update)
    for record in records:
        if record.HasField("config"):
            config |= _values(record.config.update)
    return OfflineRun(
        run.run_id,
        run.project,
        run.run_group,
        run.display_name,
        list(run.tags),
        config,
        [_values(r.history.item) for r in records if r.HasField("history")],
        [record.artifact for record in records if record.HasField("artifact")],
        [record.exit.exit_code for record in records if record.HasField("exit")],
    )


def _values(items: Iterable[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *outer, key = item.nested_key or [item.key]
        inner = values
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[key] = json.loads(item.value_json)
    return values


def _records(data: bytes) -> Iterator[Any]:
    assert data[:4] in (b"", b":W&B")
    at, whole = HEADER, b""
    while at + LEAD <= len(data):
        left = BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if left < LEAD or (kind, length) == (PADDING, 0):
            at += left
            continue
        if at + LEAD + length > len(data):
            return  # W&B's service is in the middle of writing this one.
        whole += data[at + LEAD : at + LEAD + length]
        at += LEAD + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            yield record
            whole = b""
