"""No tensor of the CPU meets one of the device, in any of the runs of `runs`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.devices.runs import STEPS
from tests.integration.launches import ROOT, environment

SEMANTICS = """
import torch
from tests.devices import fake_gpu

def refuses(operation):
    try:
        operation()
    except (RuntimeError, TypeError):
        return True
    return False

fake_gpu.install()
here = torch.arange(6.0).reshape(2, 3)
there = here.to("fakegpu")
assert there.device == torch.device("fakegpu", 0)
assert refuses(lambda: there + here)
assert refuses(lambda: here * there.sum())
assert refuses(lambda: torch.cat([there, here]))
assert refuses(lambda: here[there.long()[0].clamp(max=1)])
assert refuses(lambda: there.index_select(0, torch.tensor([1])))
assert refuses(lambda: there[here > 1].index_copy_(0, torch.tensor([1]), torch.ones(1)))
assert refuses(lambda: there.masked_fill(here > 1, 0))
assert refuses(lambda: there.numpy())
assert refuses(lambda: torch.randn(3, generator=torch.Generator(), device="fakegpu"))
assert there[torch.tensor([1])].tolist() == [[3, 4, 5]]
assert (there * torch.tensor(2.0)).cpu().equal(here * 2)
assert here.copy_(there + 1)[0, 0].item() == 1 and float(there[1, 2]) == 5
there[0].zero_()
assert there.cpu()[0].tolist() == [0, 0, 0]
layer = torch.nn.Linear(3, 2).to("fakegpu")
layer(there).square().sum().backward()
assert layer.weight.grad.device.type == "fakegpu"
assert torch.zeros(2, device="fakegpu").device == torch.tensor([1], device="fakegpu").device
"""


def test_the_fake_device_refuses_what_a_gpu_refuses() -> None:
    """So that the runs say something."""
    command = [sys.executable, "-c", SEMANTICS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory, topics: dict[str, str]) -> dict[str, str]:
    """What became of every step: an error, or nothing; of all in one process."""
    texts, folder = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("device")
    for name in sorted(topics)[:12]:
        (texts / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    command = [sys.executable, "-m", "tests.devices.runs", str(folder), str(texts)]
    variables = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("step", STEPS)
def test_nothing_of_the_cpu_meets_what_is_on_the_device(step: str, fates: dict[str, str]) -> None:
    """Of runs with every kind of inference, sparsity, update and loss, and what comes after."""
    assert not fates[step], fates[step]
