"""The command line: ``dictlearn COMMAND key=value ...`` and ``python train.py key=value ...``.

Nothing heavy is imported before a command runs, so ``--help`` and a typo are answered at once.
A user's mistake is one sentence on the standard error and exit code 2.
"""

from __future__ import annotations

import logging
import os
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
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dictlearn.begun import figures_of_the_same, going_on, put_options_back
from dictlearn.configuration import config_dir, explain, spelled_out
from dictlearn.errors import InputError, Lost, Stopped, nearest, told_of_disk
from dictlearn.launch import (
    advice,
    has_checkpoint,
    is_main_process,
    launched,
    only_writer,
    run_directory,
    tell,
)
from dictlearn.stopping import hear_signals, in_sweep, sweep_signal
from dictlearn.sweep import leave, sweep, sweeps
from dictlearn.voice import leave_behind, one_voice, tell_failure

log = logging.getLogger(__name__)

USAGE = """\
dictlearn: learn a dictionary of transformer factors, and look at them

  dictlearn train  [group=option key=value ...]   text -> hidden states -> dictionary (= python train.py)
  dictlearn train  run=DIR resume=true            go on with a run that was broken off
  dictlearn encode run=DIR text="..." [top=5]     the strongest factors of every token, layer by layer
  dictlearn cache  path=FOLDER [key=value ...]    hidden states to disk; then hidden_states=cached path=FOLDER
  dictlearn evaluate inference run=DIR            FVU against L0, time and gap of several inferences

  dictlearn COMMAND --help                        groups, options and keys of a command
  dictlearn train --cfg job                       the whole config
  dictlearn train -m dictionary.n_atoms=512,1024  one run for every value

HYDRA_FULL_ERROR=1 shows the stack trace of a mistake."""  # noqa: E501


EVALUATIONS = ("inference",)


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
        """Train in Hydra's directory; return the held-out FVU, by which a sweep can choose.

        Raises:
            SystemExit: it was stopped, and can go on later.
        """
        hear_signals()  # a worker of joblib has no other place to begin
        from dictlearn.multirun import own_processes
        from dictlearn.summary import show
        from dictlearn.training import train as run

        if sweep_signal() is not None:
            return leave(Stopped("stopped before it had begun"))
        folder = Path(HydraConfig.get().runtime.output_dir)
        word = advice(config.trainer.num_nodes, HydraConfig.get().overrides.hydra)
        if word:
            log.warning(word)
        try:
            with (
                only_writer(folder),
                _no_half_made_run(folder),
                own_processes(),
                one_voice(folder),
            ):
                figures = figures_of_the_same(folder, config)
                if figures and is_main_process():
                    log.warning("This run has finished: choose another name= for a new one.")
                figures = figures or run(config, folder)
        except (InputError, OmegaConfBaseException):
            if is_main_process():
                put_options_back(folder)
            raise
        except Stopped as stopped:
            if not in_sweep() or has_checkpoint(folder):
                tell(f"{stopped}; go on with: python train.py run={folder} resume=true")
            return leave(stopped)
        if is_main_process():
            show(folder, figures)
        return figures.get("val/fvu", float("nan"))

    hear_signals()  # a rank of a job of a sweep
    try:
        line = spelled_out(going_on(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        _stop(str(error))
    if sweeps(line):
        sweep(lambda: _launch(task, "train", line))
    else:
        _launch(task, "train", line)


def encode(arguments: list[str] | None = None) -> None:
    """Print the strongest factors of a text: ``dictlearn encode run=DIR text="..."``."""
    sentence, others = _sentence(sys.argv[1:] if arguments is None else arguments)

    def task(config: DictConfig) -> None:
        """Print the factors of the sentence."""
        from dictlearn.summary import show_factors

        show_factors(config, sentence)

    _launch(task, "encode", others)


def cache(arguments: list[str] | None = None) -> None:
    """Write hidden states to disk: ``dictlearn cache path=FOLDER``."""

    def task(config: DictConfig) -> None:
        """Make the cache, or what is missing of it."""
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
        """Evaluate, and print the table."""
        from dictlearn.evaluation import evaluate_inference
        from dictlearn.summary import show_frontier

        show_frontier(evaluate_inference(config))

    _launch(task, "evaluate", others)


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
        """Run the task as the command was given; tell a mistake or a lost process in one sentence.

        In a sweep the error is raised instead: the launcher has the other jobs to see to.

        Raises:
            SystemExit: it failed by one of them.
        """
        nonlocal composed
        composed = True
        # Lightning starts the other ranks with this very command line and environment.
        sys.argv = command_line
        _set_trace(wants_trace)
        try:
            return task(config)
        except (InputError, Lost, OmegaConfBaseException) as error:
            if wants_trace or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            if isinstance(error, Lost):
                leave_behind(error)
            _stop(explain(error, config_name, command_line[1:]), error)
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
    except (InputError, Lost) as error:
        if wants_trace:
            raise
        _stop(str(error), error)
    except Exception as error:  # Hydra has a ValueError for `prox=3`, its launchers their own
        if wants_trace or sweep_signal() is not None or _is_ours(error, composed):
            raise
        _stop(_foreign(error, config_name), error)
    finally:
        sys.argv = command_line
        _set_trace(wants_trace)


def _is_ours(error: Exception, composed: bool) -> bool:
    """Tell whether it is a fault of this program: of a run, and neither of a disk nor an option."""
    foreign = told_of_disk(error) or isinstance(error, HydraException | OmegaConfBaseException)
    return composed and not foreign


def _foreign(error: Exception, config_name: str) -> str:
    """Return the sentence for an error of the disk, of a launcher, or in the command line."""
    if type(error).__module__.startswith("joblib"):
        return (
            "A worker of the sweep was ended from outside, perhaps for want of memory: lower "
            "hydra.launcher.n_jobs; the same command and hydra.sweep.dir= of before goes on."
        )
    return told_of_disk(error) or explain(error, config_name, sys.argv[1:])


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
        if fresh and is_main_process() and not has_checkpoint(folder):
            shutil.rmtree(folder, ignore_errors=True)
            for parent in (folder.parent, folder.parent.parent):
                if parent.is_relative_to(Path.cwd() / "outputs"):
                    with suppress(OSError):
                        parent.rmdir()
        raise


def _stop(message: str, error: Exception | None = None) -> NoReturn:
    tell_failure(message, error)
    raise SystemExit(1 if isinstance(error, Lost) else 2)


# Here, since workers of joblib and submitit import this module and never call `_launch`.
_register_resolvers()
