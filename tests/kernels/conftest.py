"""Triton as the kernel tests need it: its interpreter without a GPU, itself with one."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

KERNELS = "dictlearn.kernels.triton"


def _is_triton(name: str) -> bool:
    """Python modules of triton and our kernels; its compiled part can be loaded only once."""
    compiled = name == "triton._C" or name.startswith("triton._C.")
    ours = name == KERNELS or name.startswith(KERNELS + ".")
    return ours or ((name == "triton" or name.startswith("triton.")) and not compiled)


def _taken() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _is_triton(name)}


@pytest.fixture(scope="module")
def triton_device() -> Iterator[str]:
    """The device that the kernels run on; on a CPU a private triton, interpreted.

    Triton decides when it is imported, and Lightning imports it. So it is imported anew here, and
    the old one is put back afterwards: no other test sees a difference.
    """
    pytest.importorskip("triton")
    importlib.import_module("pytorch_lightning")
    if torch.cuda.is_available():
        yield "cuda"
        return
    old = _taken()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        try:
            importlib.import_module("triton")
            yield "cpu"
        finally:
            # What is no longer in sys.modules is not emptied when Python ends; but the compiled
            # part, which is the same for both, keeps a function of one module.
            for name, module in _taken().items():
                if name != "triton._utils":
                    vars(module).clear()
            sys.modules.update(old)
