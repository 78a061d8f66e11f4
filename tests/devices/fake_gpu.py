"""A device without hardware: its tensors compute on the CPU, but refuse to meet those of the CPU.

What CUDA refuses is refused here: an operation over tensors of both devices, a generator of the
CPU for a draw on the device, `numpy()`. What CUDA allows is allowed: a CPU scalar in pointwise
operations, CPU indices into a tensor of the device, `copy_` and `to`. Code that asks for
`device.type == "cuda"` (Triton, streams) is not reached.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
CPU = torch.device("cpu")

# Both devices may meet in them.
CROSSING = {"copy_", "_to_copy", "_copy_from", "copy", "_copy_from_and_resize", "is_same_size"}
# Their indices, and a 0-dim value, may be on the CPU.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# A 0-dim tensor of the CPU may meet the device's in them: TensorIterator's allow_cpu_scalars.
SCALARS = {
    *("add", "sub", "rsub", "mul", "div", "remainder", "fmod", "floor_divide", "pow", "atan2"),
    *("eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "fmax", "fmin"),
    *("clamp_min", "clamp_max", "logical_and", "logical_or", "logical_xor", "xlogy"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "where", "addcmul", "addcdiv", "copysign"),
    *("fill", "masked_fill", "index_fill", "hypot", "logaddexp", "_foreach_mul", "_foreach_add"),
    *("_foreach_div", "_foreach_sub", "threshold", "__rshift__", "__lshift__", "floor_divide"),
    *("bitwise_left_shift", "bitwise_right_shift", "__and__", "__or__", "__xor__"),
    *("_fused_adam", "_fused_adamw", "_fused_sgd"),
}


counted = {"operations": 0}
"""How many operations were on the device so far."""


class DeviceMixedError(RuntimeError):
    """Tensors of two devices met where a GPU would refuse them."""


class FakeTensorOfDevice(torch.Tensor):
    """A tensor that says it is on the fake device, and holds the CPU tensor that it stands for."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: Any, inner: Tensor, requires_grad: bool = False) -> FakeTensorOfDevice:
        """Wrap a tensor of the CPU."""
        assert type(inner) is Tensor, type(inner)
        made: FakeTensorOfDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.held = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Show the values and the device."""
        return f"fakegpu:0({self.held!r})"

    def tolist(self) -> Any:
        """Return the values, as every tensor does."""
        return self.held.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        """Make a tensor of values, on this device unless told otherwise."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def __format__(self, how: str) -> str:
        """Format a number."""
        return format(self.held, how)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as tensors of a device do: the values, and where they were."""
        given = (self.held.detach().clone(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, given

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on the tensors inside, unless a GPU would refuse it."""
        return on_device(func, args, kwargs or {})


def on_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation of which some tensor, or the output, is on the fake device."""
    counted["operations"] += 1
    refuse(func, args, kwargs)
    device = kwargs.get("device")
    any_there = any(isinstance(t, FakeTensorOfDevice) for t in tree_iter((args, kwargs)))
    there = any_there if device is None else torch.device(device).type == NAME
    given, named = tree_map(_unwrapped, (args, kwargs))
    if device is not None and there:
        named["device"] = CPU
    if "pin_memory" in named:
        named["pin_memory"] = False
    out = func(*given, **named)
    if torch.Tag.inplace_view in func.tags:  # squeeze_ and such: the shape outside follows
        with no_dispatch():
            func(*args, **kwargs)
    return _returned(func, args, kwargs, out, there)


def _unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, FakeTensorOfDevice) else value


def _wrapped(value: Any) -> Any:
    return FakeTensorOfDevice(value) if type(value) is Tensor and value.device == CPU else value


def _in_inference_mode(args: Any, info: Any) -> bool:
    on = torch.is_inference_mode_enabled()
    return on and (info is None or bool(args[0].is_inference()))


def _returned(func: Any, args: Any, kwargs: dict[str, Any], out: Any, there: bool) -> Any:
    """Return the outputs as tensors of the device; what was written to is returned itself."""
    schema = func._schema
    written = {}
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for name in argument.alias_info.before_set:
                written[name] = value
            for tensor in tree_iter(value):
                if isinstance(tensor, FakeTensorOfDevice) and tensor.shape != tensor.held.shape:
                    raise NotImplementedError(f"{func} changes the shape of its argument")
    single = len(schema.returns) == 1
    outs = (out,) if single else tuple(out or ())
    results = []
    for value, declared in zip(outs, schema.returns, strict=True):
        info = declared.alias_info
        if info is not None and info.is_write:
            results.append(written[next(iter(info.before_set))])
        else:
            # A view of an ordinary tensor is ordinary, also in inference mode.
            with torch.inference_mode(_in_inference_mode(args, info)):
                results.append(tree_map(_wrapped, value) if there else value)
    return results[0] if single else tuple(results) if results else None


def refuse(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise DeviceMixedError where CUDA would."""
    name = func._schema.name.removeprefix("aten::")
    generator = kwargs.get("generator")
    if generator is None:
        generator = next((a for a in args if isinstance(a, torch.Generator)), None)
    if generator is not None and generator.device.type != NAME:
        raise DeviceMixedError(
            f"{func}: Expected a '{NAME}' device type for generator but found 'cpu'"
        )
    if name in CROSSING:
        return
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
    if name in INDEXING:
        here = [args[0], *args[2:3]]
        if isinstance(args[0], FakeTensorOfDevice):
            tensors = [t for t in here if isinstance(t, Tensor) and t.dim() > 0]
    elif (name[:-1] if name.endswith("_") and not name.endswith("__") else name) in SCALARS:
        first = args[0] if name.endswith("_") and not name.endswith("__") else None
        tensors = [t for t in tensors if t.dim() > 0 or t.device != CPU or t is first]
    devices = {str(t.device) for t in tensors}
    if len(devices) > 1:
        shapes = ", ".join(f"{t.device}{list(t.shape)}" for t in tensors)
        raise DeviceMixedError(f"{func}: Expected all tensors to be on the same device: {shapes}")


class _Module(ModuleType):
    """What `torch.fakegpu` answers, as far as torch and Lightning ask."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def set_device(device: Any) -> None:
        pass

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def synchronize(device: Any = None) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        pass


_library: torch.library.Library | None = None
_fallback: torch.library.Library | None = None


def _made(op: Any) -> Any:
    """Return a factory that makes its tensor at once: torch's own resizes an empty one."""
    return lambda *args, **kwargs: on_device(op, args, kwargs)


def _by_way_of_cpu(make: Any) -> Any:
    """Return `torch.tensor`, whose C++ does not find the way to a device of Python."""

    def made(data: Any, *, dtype: Any = None, device: Any = None, **others: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME:
            tensor: Tensor = make(data, dtype=dtype, device=device, **others)
            return tensor
        if isinstance(data, FakeTensorOfDevice):
            return data if dtype is None else data.to(dtype)
        moved: Tensor = make(data, dtype=dtype, **others).to(device)
        return moved

    return made


def install() -> None:
    """Make the device known to torch, once in a process."""
    global _library, _fallback
    if _library is not None:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(NAME))
    _fallback = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    _fallback.fallback(lambda op, *args, **kwargs: on_device(op, args, kwargs), "PrivateUse1")  # type: ignore[no-untyped-call]
    _library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in ("arange", "eye"):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if "out" not in overload:
                op = getattr(packet, overload)
                _library.impl(op, _made(op), "PrivateUse1")  # type: ignore[no-untyped-call]
    _device_constructors()  # remembers torch's own, for `with torch.device(...)`
    torch.tensor = _by_way_of_cpu(torch.tensor)
    torch.asarray = _by_way_of_cpu(torch.asarray)
    torch.as_tensor = _by_way_of_cpu(torch.as_tensor)
    torch.__future__.set_swap_module_params_on_conversion(True)
