"""The fake device as an accelerator of Lightning, and the overrides that choose it."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry

from tests.devices import fake_gpu

ON_IT = [f"trainer.accelerator={fake_gpu.NAME}", f"trainer.strategy={fake_gpu.NAME}"]


class FakeAccelerator(Accelerator):
    """One fake device."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == fake_gpu.NAME, device

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(fake_gpu.NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return fake_gpu.NAME


def install() -> None:
    """Make the device known to torch and to Lightning, once in a process."""
    fake_gpu.install()
    if fake_gpu.NAME not in AcceleratorRegistry:
        AcceleratorRegistry.register(fake_gpu.NAME, FakeAccelerator)
        StrategyRegistry.register(fake_gpu.NAME, SingleDeviceStrategy, device=f"{fake_gpu.NAME}:0")
