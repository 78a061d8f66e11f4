"""Where the configs are, how they become objects, and how a mistake in them is told.

Imports Hydra and OmegaConf only, so that ``--help`` and a typo are answered at once.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dictlearn.errors import InputError, nearest, one_line

ALLOWED_TARGETS = ("dictlearn.", "torch.optim.", "pytorch_lightning.")
SECRETS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
SHORTEST_SECRET = 6


def config_dir() -> str:
    """Return the folder of the configs: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return str(checkout if (checkout / "train.yaml").is_file() else package / "conf")


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the resolved config as plain dictionaries, lists, numbers and strings.

    Raises:
        InputError: a key that must be given has no value, or an interpolation fails.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(_unresolved(error)) from None
    if not isinstance(container, dict):
        raise TypeError("a config is a mapping")
    return {str(key): value for key, value in container.items()}


def redacted(node: Any) -> Any:
    """Return a plain node to be saved, without what the environment keeps under a secret's name.

    Who writes ``${oc.env:MY_TOKEN}`` into an option does not want to find it in a checkpoint.
    """
    if isinstance(node, dict):
        return {key: redacted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [redacted(value) for value in node]
    if isinstance(node, str):
        for name, secret in os.environ.items():
            if name.endswith(SECRETS) and len(secret) >= SHORTEST_SECRET:
                node = node.replace(secret, f"<{name}>")
    return node


def targets(node: Any) -> Iterator[str]:
    """Yield every ``_target_`` below a plain config node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def build(node: DictConfig, **arguments: Any) -> Any:
    """Build the object that a config node describes; `arguments` are passed on as they are.

    Only classes of this project, torch's optimizers and Lightning are ever built: a config file
    from elsewhere cannot run anything else.

    Raises:
        InputError: a value is wrong, an option does not exist, or the target is not allowed.
    """
    container = OmegaConf.to_container(node, resolve=True)
    _check_targets(list(targets(container)))
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        # Lightning's word for a wrong value
        if type(cause).__name__ == "MisconfigurationException":
            raise InputError(one_line(cause)) from None
        if isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause):
            raise InputError(_unexpected(cause, container)) from None
        if isinstance(cause, TypeError | ValueError | AttributeError | ArithmeticError):
            target = next(targets(container), "the object").rpartition(".")[2]
            raise InputError(f"{target} cannot be built: {one_line(cause)}") from None
        raise


def _check_targets(names: list[str]) -> None:
    """Refuse what is not a class of an allowed package, also if it only passes through one."""
    foreign = [name for name in names if not name.startswith(ALLOWED_TARGETS)]
    for name in foreign or names:
        found = None if foreign else _located(name)
        if not isinstance(found, type) or not found.__module__.startswith(ALLOWED_TARGETS):
            raise InputError(
                f"_target_: {name} is not built from a config; allowed are the classes of "
                f"{', '.join(prefix + '*' for prefix in ALLOWED_TARGETS)}."
            )


def _located(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError:
        return None


def _unexpected(error: TypeError, container: Any) -> str:
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    name = found.group(1) if found else str(error)
    target = next(targets(container), "the object")
    return f"There is no option '{name}' for {target}; remove it from the command line."


def flat_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key below a plain config node."""
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}{key}"
            yield name
            yield from flat_keys(value, f"{name}.")


def known_keys(config_name: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return every key of a config, with the options of groups that `arguments` choose."""
    names = groups()
    chosen = [argument for argument in arguments if argument.partition("=")[0] in names]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        try:
            config = compose(config_name, overrides=chosen)
        except HydraException:
            config = compose(config_name)
    return list(flat_keys(OmegaConf.to_container(config, resolve=False)))


def groups() -> list[str]:
    """Return the names of the config groups."""
    return sorted(path.name for path in Path(config_dir()).iterdir() if path.is_dir())


def spelled_out(arguments: list[str]) -> list[str]:
    """Return a command line of training without its short form.

    Beside ``hidden_states=cached`` a ``path=`` is ``hidden_states.path=``, as in ``dictlearn cache
    path=FOLDER``.
    """
    if "hidden_states=cached" not in arguments:
        return arguments
    return [f"hidden_states.{one}" if one.startswith("path=") else one for one in arguments]


def explain(error: Exception, config_name: str, arguments: Sequence[str]) -> str:
    """Turn an error of Hydra or OmegaConf into one sentence, with the nearest valid name.

    Args:
        error: what composing the config raised.
        config_name: ``train``, ``encode``, ...
        arguments: the command line.
    """
    mistake = _mistake(error)
    if mistake is not None:
        return str(mistake)
    text = one_line(error)
    option = re.search(r"Could not (?:find|load) '([\w/.-]+)/([^'/]+)'", text)
    if option:
        return _unknown_option(option.group(1), option.group(2))
    removed = re.search(r"(?:Key '\S+' is not in struct|Missing key \S+) full_key: (\S+)", text)
    if removed:
        return _needed(removed.group(1))
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return _unknown_key(key.group(1), known_keys(config_name, arguments))
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text
    return (
        f"{' '.join(arguments)} cannot be composed ({text}): a group takes names of its files, as "
        "in prox=topk."
    )


def _mistake(error: BaseException | None) -> InputError | None:
    """Return the mistake that a resolver of ours told, and OmegaConf wrapped."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _unresolved(error: OmegaConfBaseException) -> str:
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give it as {error.full_key}=VALUE."
    return one_line(error)


def _needed(key: str) -> str:
    return f"'{key}' is needed: leave ~{key} out."


def _unknown_key(key: str, known: list[str]) -> str:
    group = key.rpartition(".")[0]
    if key in known:
        return _needed(group)
    siblings = [name for name in known if name.rpartition(".")[0] == group != ""]
    there = f" {group} has {', '.join(siblings)}." if siblings else ""
    inner = [f"'{name}'" for name in known if name.endswith(f".{key}")]
    meant = f" Did you mean {' or '.join(inner)}?" if inner else nearest(key, [*known, *groups()])
    return f"There is no option '{key}'.{meant}{there}"


def _unknown_option(group: str, option: str) -> str:
    folder = Path(config_dir()) / group
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        return f"There is no config group '{group}'.{nearest(group, groups())}"
    return f"{group}={option} is not one of {', '.join(names)}.{nearest(option, names)}"
