"""Small runs on the fake device, one process for all: python -m tests.devices.runs FOLDER TEXTS.

The last line says what became of each: nothing, or the error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.devices import fake_accelerator, fake_gpu

STREAM = [
    *("hidden_states.layers=[0,1]", "hidden_states.block_length=16", "text=local"),
    *("hidden_states.statistics_tokens=256", "hidden_states.sequences_per_block=8"),
]
CACHE = ["hidden_states=cached", "hidden_states.path=cache"]
FILE = ["hidden_states=cached", "hidden_states.path=vectors.npy"]
SOFT = ["prox=soft", "prox.target_l0=4"]
FAST = ["inference=autoencoder", "update=adam"]
RECIPES = {
    "default": [*STREAM, "prox.k=4", "hidden_states.token_weight_exponent=0.5"],
    "cached": [*CACHE, "prox.k=4", *FAST, "trainer.val_check_interval=0.4"],
    "mairal": [*FILE, "prox.k=4", "inference=omp", "update=mairal", "dictionary.bias=true"],
    "priced": [*FILE, *SOFT, "inference=working_set", "update=hessian_diagonal"],
    "certified": [*FILE, *SOFT, "inference=fista", "update=hessian_diagonal_seed"],
    "power": [*FILE, "prox=power", "prox.target_l0=4", "inference=unrolled", "update=adam"],
    "jump": [*FILE, "prox=jump", "prox.target_l0=4", *FAST, "dictionary.initialization=data"],
    "matryoshka": [*FILE, "prox.k=4", *FAST, "loss=matryoshka"],
    "signum": [*FILE, "prox=topk", "prox.k=4", "inference=pursuit_encoder", "update=signum"],
    "variants": [*FILE, "variants={prox.k:[2,4]}", "inference=lista"],
}
"""The overrides of runs that between them use most of what works on a device."""

PRICED = ("working_set", "lasso_refit")
CODED = ("trained", "omp", "exchange", "matching_pursuit", *PRICED)


def overrides(name: str) -> list[str]:
    """Return the command line of a recipe."""
    return [
        *("dictionary.n_atoms=48", "dictionary.dead_after_vectors=300", "max_vectors=1024"),
        *("hidden_states.batch_size=128", "hidden_states.validation_vectors=128"),
        *("callbacks.revival.every_vectors=256", "callbacks.revival.duplicate_cosine=0.3"),
        *("trainer.enable_progress_bar=false", "trainer.val_check_interval=0.5"),
        *("callbacks.checkpoint.every_steps=3", "trainer.log_every_n_steps=2"),
        *(f"hydra.run.dir={name}", "data_dir=data", *fake_accelerator.ON_IT, *RECIPES[name]),
    ]


def train(name: str) -> None:
    """Run a recipe to its end."""
    from dictlearn import cli

    cli.train([f"text.path={TEXTS}"] * (RECIPES[name][0] == STREAM[0]) + overrides(name))


def cache() -> None:
    """Make a cache with the transformer on the device."""
    from dictlearn import caching, cli

    caching._device = lambda name: torch.device(fake_gpu.NAME, 0)
    few = ["max_vectors=2048", "max_validation_vectors=256", "data_dir=data"]
    cli.cache(["path=cache", f"text.path={TEXTS}", *few, *STREAM])


def resume(name: str) -> None:
    """Stop a run after five steps by a signal, and go on from its checkpoint."""
    from dictlearn import cli
    from dictlearn.launch import TRY_AGAIN
    from dictlearn.learner import DictionaryLearner

    def stop(learner: DictionaryLearner, *_: object) -> None:
        if learner.trainer.global_step == 5:
            signal.raise_signal(signal.SIGTERM)

    shutil.rmtree(name, ignore_errors=True)
    DictionaryLearner.on_train_batch_end = stop  # type: ignore[assignment, method-assign]
    try:
        with pytest.raises(SystemExit, match=str(TRY_AGAIN)):
            train(name)
    finally:
        del DictionaryLearner.on_train_batch_end
    assert not Path(name, "metrics.json").exists()
    cli.train([f"run={name}", "resume=true"])


def evaluate() -> None:
    """Compare inferences on a trained dictionary."""
    from dictlearn import cli, evaluation

    evaluation._device = lambda name: fake_gpu.NAME
    methods = "methods=[trained,exchange+shared]"
    cli.evaluate(["inference", "run=signum", "l0=[3]", "vectors=32", methods])


def load() -> None:
    """Code raw vectors of the CPU and of the device with a dictionary that was moved there."""
    import dictlearn

    trained = dictlearn.load("mairal").to(fake_gpu.NAME)
    x = torch.from_numpy(np.load("vectors.npy")[:40])
    for name in CODED:
        options = {"lambda_": 0.1} if name in PRICED else {"k": 3}
        chosen = trained if name == "trained" else trained.with_inference(name, **options)
        codes = chosen.encode(x, 0)
        assert codes.device.type == fake_gpu.NAME
        chosen.encode(x.to(fake_gpu.NAME), 0)
        chosen.decode(codes.cpu(), 0)
        chosen.infer(x, 0)
    trained.with_inference("exchange", k=3, sample=x, layer=0).encode(x, 0)
    dictlearn.load("default").to(fake_gpu.NAME).encode_text("Hello world")
    assert trained.to("cpu").encode(x, 0).device.type == "cpu"


STEPS: dict[str, Callable[[], None]] = {
    "cache": cache,
    **{name: partial(train, name) for name in RECIPES},
    "load": load,
    "evaluate": evaluate,
    **{f"resume {name}": partial(resume, name) for name in ("priced", "power", "signum")},
}
"""What is done, in this order."""


def _fate(step: Callable[[], None]) -> str:
    before = fake_gpu.counted["operations"]
    try:
        step()
    except BaseException:
        return traceback.format_exc(limit=-12)
    there = fake_gpu.counted["operations"] - before
    sys.stderr.write(f"{time.process_time():6.1f} s of the processor, {there} operations\n")
    return "" if there > 1000 else f"only {there} operations were on the device"


if __name__ == "__main__":
    fake_accelerator.install()
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    TEXTS = sys.argv[2]
    draws = np.random.default_rng(0)
    np.save("vectors.npy", draws.normal(size=(1600, 24)).astype(np.float32))
    wanted = sys.argv[3:] or list(STEPS)
    fates = {name: _fate(STEPS[name]) for name in wanted}
    sys.stdout.write("\n" + json.dumps(fates) + "\n")
