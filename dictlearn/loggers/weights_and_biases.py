"""Weights & Biases, and what to do without it. Only this and `wandb_service` import `wandb`.

Training never ends because of W&B, nor waits for it: without login or network a run is recorded
offline; when its server falls silent the rest is recorded for a later upload; and when its service
dies the history goes on in `metrics.csv`.
"""

from __future__ import annotations

import logging
import re
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from dictlearn.errors import number
from dictlearn.loggers import wandb_options as asked
from dictlearn.loggers.reachable import answers, in_netrc
from dictlearn.loggers.wandb_service import finish_run, leave_service, service_starts

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
ANSWER_SECONDS = 4.0
START_SECONDS = 20.0
# A login stored for the old address of W&B's own server is good for the new one.
OLD_HOST = "https://api.wandb.ai"
NEW_HOST = "https://api.forge.coreweave.com"


class WandbRunLogger(WandbLogger):
    """One W&B run for one run directory, started at the first use on rank 0.

    Args:
        save_dir: the run directory; W&B writes under `wandb/` in it.
        project: in W&B.
        name: of the run in W&B.
        entity: team or user; None is the default one of the login.
        group: runs that belong together.
        tags: of the run.
        mode: "online", "offline", "disabled", or "auto": as WANDB_MODE and W&B's settings say.
        upload_seconds: longest wait for the last upload at the end.

    Raises:
        InputError: W&B would refuse the mode, the project or a tag.
    """

    def __init__(
        self,
        save_dir: str | Path,
        project: str = "dictlearn",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: str | Iterable[str] = (),
        mode: str = "auto",
        upload_seconds: float = 50,
    ) -> None:
        super().__init__(
            name=asked.as_text(name),
            save_dir=str(save_dir),
            project=asked.as_project(str(project)),
            entity=asked.as_text(entity),
            group=asked.as_text(group),
            tags=asked.as_tags(tags),
        )
        self._mode = asked.as_mode(mode)
        self._upload_seconds = number("logger.wandb.upload_seconds", upload_seconds, 1)
        self._closed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The run of `wandb`; the first use starts it, and only now is the network touched."""
        if self._experiment is None:
            # Set by Lightning where the parent process started the run and spawned this one.
            attach_id = getattr(self, "_attach_id", None)
            self._experiment = _attach(attach_id) if attach_id else self._start()
        return cast("Run", self._experiment)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Put the config into the config of the run, nested as it is."""
        self._attempt(lambda: super(WandbRunLogger, self).log_hyperparams(params or {}))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add one row to the history; `step` is that of the optimizer."""
        self._attempt(lambda: super(WandbRunLogger, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_histogram(
        self, key: str, histogram: tuple[np.ndarray, np.ndarray], step: int | None = None
    ) -> None:
        """Add a histogram, counts `[b]` and edges `[b + 1]`, to the history."""
        import wandb

        self.log_metrics({key: wandb.Histogram(np_histogram=histogram)}, step)

    def log_page(self, key: str, path: Path, step: int) -> None:
        """Add an HTML page to the history; W&B must not inject what the page's policy forbids."""
        import wandb

        self.log_metrics({key: wandb.Html(str(path), inject=False)}, step)

    @rank_zero_only
    def log_folder(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Record the files of `folder` as an artifact of type "dictionary"."""
        self._attempt(lambda: _log_artifact(self.experiment, _artifact(folder, name, metadata)))

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """Close the run, waiting at most `upload_seconds`; later logging is ignored."""
        run = cast("Run | None", self._experiment)
        try:
            if run is not None:
                finish_run(run, int(failed))
        except TimeoutError:
            self._give_up(f"the last upload took more than {self._upload_seconds:g} s")
        except Exception as error:  # see `_is_outage`
            if not _is_outage(error):
                raise
            self._give_up(_reason(error))
            leave_service()
        self._closed = True

    def _attempt(self, action: Callable[[], object]) -> None:
        """Do something with W&B; after its first failure, leave it alone until the end."""
        if self._closed:
            return
        try:
            action()
        except Exception as error:  # see `_is_outage`
            if not _is_outage(error):
                raise
            self._give_up(_reason(error))

    def _give_up(self, reason: str) -> None:
        """Log no more, and say once where the rest is."""
        if self._closed:
            return
        self._closed = True
        folder = Path(self.save_dir or ".")
        run = self._experiment
        if run is None:
            log.warning("W&B cannot record this run (%s); %s has its history.", reason, folder)
            return
        log.warning(
            "W&B has not got all of this run (%s); `wandb sync --include-online %s` uploads later "
            "what it recorded, and %s has the rest.",
            reason,
            Path(run.dir).parent,
            folder,
        )

    def _start(self) -> Run:
        """Start the run online if that is wished and possible, otherwise offline or not at all."""
        if not service_starts(START_SECONDS):
            raise OSError("its service does not start")
        obstacle = None
        mode = self._mode or _configured_mode()
        if mode == "online":
            obstacle = _obstacle()
            try:
                if obstacle is None:
                    return self._open("online")
            except Exception as error:  # see `_is_outage`
                if not _is_outage(error):
                    raise
                obstacle = f"it could not start ({_reason(error)})"
                leave_service()  # which holds the id of the run
            mode = "offline"
        try:
            run = self._open(mode)
        except Exception as error:  # see `_is_outage`
            if not _is_outage(error):
                raise
            log.warning("W&B cannot record this run (%s); the run goes on.", _reason(error))
            return self._open("disabled")
        if obstacle:
            log.warning(
                "W&B records this run offline because %s; upload it later with `wandb sync %s`.",
                obstacle,
                Path(run.dir).parent,
            )
        return run

    def _open(self, mode: asked.Mode) -> Run:
        import wandb

        folder = Path(self.save_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        earlier = asked.earlier_run(folder)
        arguments = {key: self._wandb_init[key] for key in ("name", "project", "entity", "group")}
        run = wandb.init(
            **arguments,
            tags=self._wandb_init["tags"],
            dir=str(folder),
            id=earlier,
            resume="allow",  # so that `wandb sync` puts the pieces of a run one behind the other
            mode=mode,
            reinit="create_new",
            settings=_settings(self._upload_seconds),
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        if mode == "online":
            log.info("W&B shows this run at %s", run.url)
        return run


def _is_outage(error: Exception) -> bool:
    """Tell W&B's own errors, some of which derive from Exception alone, and the system's."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "wandb"


def _settings(upload_seconds: float) -> Any:
    """Return W&B's settings for a quiet run with bounded times."""
    import wandb

    bounds: dict[str, Any] = {}
    if "finish_timeout" in wandb.Settings.model_fields:  # from wandb 0.27 on
        bounds = {"finish_timeout": upload_seconds, "finish_timeout_raises": True}
    return wandb.Settings(console="off", silent=True, init_timeout=START_SECONDS, **bounds)


def _attach(attach_id: str) -> Run:
    import wandb

    return wandb._attach(attach_id)  # type: ignore[attr-defined, no-any-return]


def _log_artifact(run: Run, artifact: Any) -> None:
    """Record the artifact, where the server answers.

    W&B would ask a silent one for 19 s; and what its service then holds back for it keeps `finish`
    waiting beyond all bounds.

    Raises:
        ConnectionError: the server does not answer.
    """
    server = run.settings.base_url
    if not (run.offline or run.disabled or answers(server, ANSWER_SECONDS)):
        raise ConnectionError(f"{server} does not answer")
    run.log_artifact(artifact)


def _artifact(folder: Path, name: str, metadata: Mapping[str, Any]) -> Any:
    import wandb

    artifact = wandb.Artifact(
        re.sub(r"[^\w.-]+", "-", name)[:128], type="dictionary", metadata=dict(metadata)
    )
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        # Immutable: read from the run directory, not copied into the user's home first.
        artifact.add_file(str(path), path.relative_to(folder).as_posix(), policy="immutable")
    return artifact


def _obstacle() -> str | None:
    """Return why no run can be sent to W&B now, in a few words, or None; asks the user nothing."""
    import wandb

    settings = wandb.setup().settings
    hosts = [settings.base_url]
    if hosts[0] == NEW_HOST:
        hosts.append(OLD_HOST)
    if not (settings.api_key or settings.identity_token_file or in_netrc(*hosts)):
        return "no login was found (`wandb login` or WANDB_API_KEY gives one)"
    if not answers(settings.base_url, ANSWER_SECONDS):
        return f"{settings.base_url} does not answer"
    return None


def _configured_mode() -> asked.Mode:
    """Return what `wandb offline` and the like have left in W&B's settings."""
    import wandb

    mode = wandb.setup().settings.mode
    return mode if mode in asked.MODES else "offline" if mode == "dryrun" else "online"


def _reason(error: BaseException) -> str:
    """Return the message of an error in a few words; servers also send whole pages."""
    words = re.sub(r"<[^>]*>", " ", str(error)) or type(error).__name__
    return textwrap.shorten(words, 160, placeholder=" ...").rstrip(".")
