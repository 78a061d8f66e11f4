"""The command line: ``dictlearn COMMAND key=value ...`` and ``python train.py key=value ...``.

Nothing heavy is imported before a command runs, so ``--help`` and a typo are answered at once.
A user's mistake is one sentence on the standard error and exit code 2.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dictlearn.configuration import config_dir, explain
from dictlearn.errors import InputError, Stopped, nearest
from dictlearn.launch import advice, is_main_process, launched, only_writer, run_directory

USAGE = """\
dictlearn: learn a dictionary of transformer factors, and look at them

  dictlearn train  [group=option key=value ...]   text -> hidden states -> dictionary (= python train.py)
  dictlearn train  run=DIR resume=true            go on with a run that was broken off
  dictlearn encode run=DIR text="..." [top=5]     the strongest factors of every token, layer by layer
  dictlearn cache  path=FOLDER [key=value ...]    hidden states to disk; then hidden_states=cached hidden_states.path=FOLDER
  dictlearn evaluate inference run=DIR            FVU against L0, time and gap of several inferences

  dictlearn COMMAND --help                        groups, options and keys of a command
  dictlearn train --cfg job                       the whole config
  dictlearn train -m dictionary.n_atoms=512,1024  one run for every value

HYDRA_FULL_ERROR=1 shows the stack trace of a mistake."""  # noqa: E501


EVALUATIONS = ("inference",)
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
MACHINE = r"[+~]*trainer\.(accelerator|devices|num_nodes|strategy)\b"  # what trainer= says anew


def main() -> None:
    """Run the command named by the first argument."""
    commands = {"train": train, "encode": encode, "evaluate": evaluate, "cache": cache}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
    elif name not in commands:
        _stop(f"There is no command '{name}'.{nearest(name, commands)} See dictlearn --help.")
    else:
        commands[name](sys.argv[2:])


def train(arguments: list[str] | None = None) -> None:
    """Train a dictionary: ``dictlearn train`` and ``python train.py``."""

    def task(config: DictConfig) -> float:
        from dictlearn.multirun import own_processes
        from dictlearn.summary import show
        from dictlearn.training import train as run

        folder = Path(HydraConfig.get().runtime.output_dir)
        word = advice(config.trainer.num_nodes, HydraConfig.get().overrides.hydra)
        if word:
            logging.getLogger(__name__).warning(word)
        try:
            with only_writer(folder), _no_half_made_run(folder), own_processes():
                metrics = run(config, folder)
        except Stopped as stopped:
            _try_again(stopped, folder)
        if is_main_process():
            show(folder, metrics)
        return metrics.get("val/fvu", float("nan"))

    _launch(task, "train", going_on(sys.argv[1:] if arguments is None else arguments))


def encode(arguments: list[str] | None = None) -> None:
    """Print the strongest factors of a text: ``dictlearn encode run=DIR text="..."``."""
    sentence, others = _sentence(sys.argv[1:] if arguments is None else arguments)

    def task(config: DictConfig) -> None:
        from dictlearn.summary import show_factors

        show_factors(config, sentence)

    _launch(task, "encode", others)


def cache(arguments: list[str] | None = None) -> None:
    """Write hidden states to disk: ``dictlearn cache path=FOLDER``."""

    def task(config: DictConfig) -> None:
        from dictlearn.caching import cache as run

        run(config)

    _launch(task, "cache", arguments)


def evaluate(arguments: list[str] | None = None) -> None:
    """Compare inferences on one dictionary: ``dictlearn evaluate inference run=DIR``."""
    what, *others = [*(sys.argv[1:] if arguments is None else arguments), ""]
    others = [argument for argument in others if argument]
    if what.startswith("-"):
        others.insert(0, what)
    elif what not in EVALUATIONS:
        _stop(
            f"dictlearn evaluate '{what}' is not one of {', '.join(EVALUATIONS)}."
            f"{nearest(what, EVALUATIONS)}"
        )

    def task(config: DictConfig) -> None:
        from dictlearn.evaluation import evaluate_inference
        from dictlearn.summary import show_frontier

        show_frontier(evaluate_inference(config))

    _launch(task, "evaluate", others)


def going_on(arguments: list[str]) -> list[str]:
    """Turn ``run=DIR resume=true`` into the command line that the run began with, and its place.

    Options given beside them come last, and so take the place of the old ones; another trainer=
    that of all that the old one said of the machine.

    Raises:
        SystemExit: there is no run in DIR.
    """
    named = [argument for argument in arguments if argument.startswith("run=")]
    if not named:
        return arguments
    folder = Path(named[-1].removeprefix("run="))
    others = [argument for argument in arguments if argument not in named]
    if not any(argument.lower() == "resume=true" for argument in others):
        _stop(f"{named[-1]} goes on with the run there; say so with resume=true.")
    path = folder / ".hydra" / "overrides.yaml"
    try:
        before = [str(entry) for entry in OmegaConf.load(path)]
    except (OSError, YAMLError):
        _stop(f"There is no run to go on with in {folder}: {path} is not there or damaged.")
    for entry in before:
        # A run that comes from elsewhere is data: it must not choose what the launcher executes.
        if not re.match(r"[+~]*(?!hydra\b)\w", entry):
            _stop(f"{path} holds '{entry}', which no run writes there: remove that line.")
    before = [entry for entry in before if not entry.startswith("resume=")]
    if any(argument.startswith("trainer=") for argument in others):
        before = [entry for entry in before if not re.match(MACHINE, entry)]
        before += _chosen_by_trainer(folder, [*before, *others])
    place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*before, *others, f"hydra.run.dir='{place}'"]


def _chosen_by_trainer(folder: Path, given: list[str]) -> list[str]:
    """Return the choices of a run that its own trainer may have made, and another one would not."""
    with suppress(OSError, YAMLError, AttributeError, KeyError):
        choices = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.choices
        return [
            f"{group}={choices[group]}"
            for group in ("inference", "update")
            if re.fullmatch(r"\w+", str(choices[group]))
            and not any(entry.startswith(f"{group}=") for entry in given)
        ]
    return []


def _try_again(stopped: Stopped, folder: Path) -> NoReturn:
    """Say how to go on, and end with the code that means so.

    The other processes end with 0: at any other code a launcher would kill the first, which has
    its histories to close.
    """
    if not is_main_process():
        raise SystemExit(0)
    sys.stderr.write(
        f"dictlearn: {stopped}; go on with: python train.py run={folder} resume=true\n"
    )
    raise SystemExit(TRY_AGAIN)


def _sentence(arguments: list[str]) -> tuple[str, list[str]]:
    """Take ``text=...`` out of the arguments: a sentence is no matter of Hydra's grammar."""
    texts = [argument.removeprefix("text=") for argument in arguments if argument[:5] == "text="]
    return "".join(texts[-1:]), [argument for argument in arguments if argument[:5] != "text="]


def _launch(
    task: Callable[[DictConfig], object], config_name: str, arguments: list[str] | None
) -> None:
    """Compose the config with Hydra, run the task, and tell mistakes in one sentence."""
    command_line = list(sys.argv)
    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if arguments is not None:
        sys.argv = [command_line[0], *arguments]

    composed = False

    def guarded(config: DictConfig) -> object:
        nonlocal composed
        composed = True
        # Lightning starts the other ranks with this very command line and environment.
        sys.argv = command_line
        _set_trace(wants_trace)
        try:
            return task(config)
        except (InputError, OmegaConfBaseException) as error:
            if wants_trace or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _stop(explain(error, config_name, command_line[1:]))
        finally:
            _set_trace(True)

    # torch's threads spin while they wait for each other, by default. Where other work shares the
    # cores that was measured to cost 2.4 times the speed; asleep they cost 5 % on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Hydra prints errors itself and exits with 1 unless it is told to raise them.
    _set_trace(True)
    try:
        _register_resolvers()
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(guarded)()
    except InputError as error:
        if wants_trace:
            raise
        _stop(str(error))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        if wants_trace:
            raise
        _stop(f"{error.filename} cannot be written: choose another hydra.run.dir=DIR.")
    except Exception as error:
        # Hydra has a ValueError for `prox=3`, among others; that of a run is a fault of ours.
        ours = composed and not isinstance(error, HydraException | OmegaConfBaseException)
        if wants_trace or ours:
            raise
        _stop(explain(error, config_name, sys.argv[1:]))
    finally:
        sys.argv = command_line
        _set_trace(wants_trace)


def _set_trace(raised: bool) -> None:
    if raised:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    else:
        os.environ.pop("HYDRA_FULL_ERROR", None)


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("if_main", _if_main, replace=True)
    OmegaConf.register_new_resolver("launched", launched, replace=True)
    # Cached: asked again it must name the directory that it made, also in the jobs of a sweep.
    OmegaConf.register_new_resolver("run_dir", run_directory, replace=True, use_cache=True)


def _if_main(value: object, other: object) -> object:
    return value if is_main_process() else other


@contextmanager
def _no_half_made_run(folder: Path) -> Iterator[None]:
    """Take the run directory back when a mistake ends the run before its first checkpoint.

    A directory that held anything before this launch (but Hydra's own files) is left alone.
    """
    ours = {path.name for path in folder.iterdir()} <= {".hydra", "run.log"}
    fresh = ours and not Path.cwd().is_relative_to(folder.resolve())
    try:
        yield
    except (InputError, OmegaConfBaseException):
        if fresh and is_main_process() and not any(folder.glob("checkpoints/*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
            for parent in (folder.parent, folder.parent.parent):
                if parent.is_relative_to(Path.cwd() / "outputs"):
                    with suppress(OSError):
                        parent.rmdir()
        raise


def _stop(message: str) -> NoReturn:
    if is_main_process():
        sys.stderr.write(f"dictlearn: {message}\n")
    raise SystemExit(2)


# Here, since workers of joblib and submitit import this module and never call `_launch`.
_register_resolvers()
