"""The Lightning strategy of a dictionary in parts: a mesh of data and dictionary processes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from dictlearn import processes
from dictlearn.ensemble import learners
from dictlearn.errors import InputError, whole_number
from dictlearn.mesh import Mesh, Processes
from dictlearn.sharding import average_gradients


class DictionaryParallel(DDPStrategy):
    """Shares the atoms out over processes, and the rows over groups of such processes.

    Processes that follow each other hold one dictionary together and see the same rows; groups
    of them see rows of their own, as the processes of `ddp` do. Everything else, from the start
    of the processes on, is Lightning's `DDPStrategy`, less its wrapper: gradients of atoms are
    averaged over the processes with the same atoms only.

    Args:
        dictionary_parallel_size: processes that hold one dictionary together; None: all.
        arguments: of `DDPStrategy`.

    Attributes:
        mesh: who holds what, once the processes know each other.

    Raises:
        InputError: the size is no whole number above 0; later, it does not divide the processes.
    """

    def __init__(self, dictionary_parallel_size: int | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        if dictionary_parallel_size is not None:
            whole_number("trainer.strategy.dictionary_parallel_size", dictionary_parallel_size)
        self._size = dictionary_parallel_size
        self.mesh = Mesh()

    @property
    def n_shards(self) -> int:
        """Into how many parts the dictionary goes.

        Raises:
            InputError: the number of processes is no multiple of it.
        """
        world = self.num_nodes * self.num_processes
        size = world if self._size is None else self._size
        if world % size:
            raise InputError(
                f"trainer.strategy.dictionary_parallel_size={size} must divide the {world} "
                f"processes (trainer.devices times trainer.num_nodes): set trainer.devices={size}."
            )
        return size

    def setup_environment(self) -> None:
        """Let the processes know each other, and arrange them in a mesh."""
        super().setup_environment()
        if self.mesh != Mesh():
            return
        shards = self.n_shards
        shape = (self.world_size // shards, shards)
        kind = self.root_device.type
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "dictionary"))
        data, dictionary = (
            Processes(mesh.get_local_rank(axis), size, mesh.get_group(axis))
            for axis, size in enumerate(shape)
        )
        self.mesh = Mesh(data, dictionary)

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare module and optimizers; nothing is sent from process 0 to the others.

        All start alike by themselves, from the seed, and have other atoms.
        """
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def training_step(self, *args: Any, **arguments: Any) -> Any:
        """Take the module's step; the batch is that of the processes with rows of their own."""
        with processes.among(self.mesh.data.group):
            return super().training_step(*args, **arguments)

    def validation_step(self, *args: Any, **arguments: Any) -> Any:
        """Take the module's step, likewise."""
        with processes.among(self.mesh.data.group):
            return super().validation_step(*args, **arguments)

    def optimizer_step(self, *args: Any, **arguments: Any) -> Any:
        """Take the optimizer's step, likewise."""
        with processes.among(self.mesh.data.group):
            return super().optimizer_step(*args, **arguments)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients over the processes that have rows of their own."""
        assert self.lightning_module is not None
        for part in learners(self.lightning_module).values():
            average_gradients(part.dictionary, part.inference, self.mesh)
