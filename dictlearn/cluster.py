"""What Lightning is told of the cluster: who requeues, and whether the processes fit."""

from __future__ import annotations

import os

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dictlearn.errors import InputError
from dictlearn.launch import world


def environments() -> list[ClusterEnvironment]:
    """Return the plugin for SLURM where this is a task of it, otherwise none: Lightning knows.

    Lightning's own requeue runs collectives in the handler of a signal and hangs with more than
    one process; it is switched off, whatever the trainer. And a job of one task is to Lightning
    one of one process, which leaves all GPUs but one idle; here it starts the others.

    Raises:
        InputError: the tasks were asked for, or started, in a way that would wait for ever.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    tasks = int(os.environ["SLURM_NTASKS"])
    if tasks == 1:
        return [LightningEnvironment()]
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        raise InputError(
            f"SLURM has {tasks} tasks for this job and one was started: write srun python train.py."
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise InputError(
            f"SLURM was asked for --ntasks={tasks}: give --nodes and --ntasks-per-node instead, "
            "so that every node is known to have the same number."
        )
    return [SLURMEnvironment(auto_requeue=False)]


def check_world(trainer: pl.Trainer) -> None:
    """Refuse a trainer that expects other processes than a launcher has started, or whose processes
    take with them what they learn.

    Raises:
        InputError: what to change, with both numbers.
    """  # noqa: D205
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            "trainer.strategy starts processes that end with the training, and all they know with "
            "them: choose trainer.strategy=ddp, which starts this program once for each."
        )
    outer = world()
    if outer is None or trainer.num_devices * trainer.num_nodes == outer.processes:
        return
    raise InputError(
        f"{outer.launcher} started {outer.processes} processes on {outer.nodes} nodes, "
        f"but trainer.devices={trainer.num_devices} and trainer.num_nodes={trainer.num_nodes}: "
        f"give trainer.devices={outer.processes // outer.nodes} trainer.num_nodes={outer.nodes}."
    )


def meet_again(trainer: pl.Trainer) -> None:
    """Connect the processes that torchrun has started again, under keys of their own.

    torchrun's store outlives them, with the addresses of those that are no more: gloo would try to
    reach these, and fail (torch 2.13).
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    outer = world()
    if attempt == "0" or outer is None or torch.distributed.is_initialized():
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store = TCPStore(*place, outer.processes, is_master=False)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"dictlearn/attempt_{attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=outer.processes,
    )
