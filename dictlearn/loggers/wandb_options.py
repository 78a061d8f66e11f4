"""What can be asked of a W&B run, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

from dictlearn.errors import InputError, choice

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = ("online", "offline", "disabled")


def as_mode(mode: str) -> Mode | None:
    """Return the mode that is wished, or None where W&B's own settings decide."""
    if choice("logger.wandb.mode", mode, ("auto", *MODES)) != "auto":
        return cast("Mode", mode)
    wish = os.environ.get("WANDB_MODE")
    earlier = {"dryrun": "offline", "run": "online"}
    return cast("Mode", choice("WANDB_MODE", earlier.get(wish, wish), MODES)) if wish else None


def as_project(project: str) -> str:
    """Return the name of the project, which must be one to W&B."""
    if not project or len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError(
            f"logger.wandb.project={project} must have 1 to 128 characters, without / \\ # ? % :."
        )
    return project


def as_text(value: object) -> str | None:
    """Return a name as text: on the command line `name=7` is a number."""
    return None if value is None else str(value)


def as_tags(tags: str | Iterable[str]) -> list[str]:
    """Return one tag or several as a list."""
    names = [tags] if isinstance(tags, str) else [str(tag) for tag in tags]
    for name in names:
        if not 1 <= len(name) <= 64:
            raise InputError(f"logger.wandb.tags: '{name}' must have 1 to 64 characters.")
    return names


def earlier_run(folder: Path) -> str | None:
    """Return the id of the last run of this run directory, online or not, to go on with it."""
    runs = [path.name.removeprefix("offline-") for path in (folder / "wandb").glob("*run-*-*")]
    return max(runs).rsplit("-", 1)[1] if runs else None
