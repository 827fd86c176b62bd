"""A pretend CUDA device: tensors on it have shape, dtype, device and strides, but no memory.

One dispatch mode decides each operator. What touches only the CPU runs there for real; whatever
has an operand on "cuda" or is to be made there runs under FakeTensorMode. Time, numbers and streams
are not seen.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from tools.pretend.ledger import Ledger
from tools.pretend.memory import Memory
from tools.pretend.operators import FACTORIES, FUSED, INDEXED, PRODUCTS, SIZED_BY_VALUES, VIEWS
from tools.pretend.values import MOST, Values

CUDA: Final = torch.device("cuda:0")


class PretendDevice(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]  # mypy is of two minds about torch
    """Enter it to let "cuda" be this device; `room` is its memory in bytes (None: no limit)."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]  # mypy is of two minds about torch
        self.fake = FakeTensorMode(allow_non_fake_inputs=False)
        self.memory = Memory(room)
        self.ledger = Ledger()
        self._values = Values()
        self._special: dict[str, Callable[..., Any]] = {
            "_to_copy": self._convert,
            "copy_": self._copy,
            "_local_scalar_dense": self._read,
            "item": self._read,
            "equal": self._compare,
            "_pin_memory": self._pin,
            "convolution": self._convolve,
            "gemm_4bit": self._multiply_4bit,
            **dict.fromkeys(FUSED, self._upsample),
        }

    def enter_phase(self, phase: str) -> str:
        """Count what follows as another phase's and return the name of the one before."""
        self.ledger.phase = phase
        return self.memory.enter(phase)

    def make(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an empty tensor on the device."""
        with self.fake:
            made = torch.empty(shape, dtype=dtype, device=CUDA)
        self.memory.add(made)
        return made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        given = dict(kwargs or {})
        if func.namespace == "prim":
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args, **given)
        name = func._schema.name.rpartition("::")[2]  # noqa: SLF001 - the operator's only name
        is_whole = name in FUSED and is_on_device(args[0])
        if func.namespace == "aten" and not is_whole and func._can_decompose():  # noqa: SLF001 - as torch's own modes do
            # inference mode hands composite operators over in one piece
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        if given.get("pin_memory"):
            given["pin_memory"] = False
        operands = [one for one in tree_leaves((args, given)) if isinstance(one, Tensor)]
        if any(map(is_on_device, operands)) or is_for_device(given):
            return self._route(func, name, operands, args, given)
        return func(*args, **given)

    def _route(
        self, func: Any, name: str, operands: Sequence[Tensor], args: Any, given: dict[str, Any]
    ) -> Any:
        """Run an operator that touches the device."""
        if name in self._special:
            return self._special[name](func, args, given)
        if name in SIZED_BY_VALUES:
            self.ledger.add_wait(name)
            if self._values.has_all([one for one in operands if isinstance(one, FakeTensor)]):
                return tree_map_only(Tensor, self._send, self._values.compute(func, args, given))
        if name in INDEXED:
            args = self._send_indices(args)
        self._check_devices(name, tree_leaves((args, given)))
        args, given = tree_map_only(Tensor, self._place, (tuple(args), given))
        found = self._run(func, name, args, given)
        self._follow(func, name, args, given, found)
        return found

    def _check_devices(self, name: str, operands: Sequence[Any]) -> None:
        """Count operands that are on the CPU; a number there reaches a kernel with its launch."""
        if any(isinstance(one, Tensor) and one.dim() and not is_on_device(one) for one in operands):
            self.ledger.add_mixed(name)

    def _run(self, func: Any, name: str, args: Any, given: dict[str, Any]) -> Any:
        """Run an operator without memory, and count it."""
        with self.fake:
            found = func(*args, **given)
        made = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
        for one in made:
            if one.device.type == "cuda":
                self.memory.add(one)
        if name not in VIEWS:
            count = flop_registry.get(func._overloadpacket)  # noqa: SLF001 - flop_registry's key
            operations = count(*args, **given, out_val=found) if count else 0
            touched = {id(one): one for one in [*tree_leaves((args, given)), *made]}
            moved = sum(count_bytes(one) for one in touched.values() if is_on_device(one))
            self.ledger.add_kernel(moved, operations, is_product=name in PRODUCTS)
        return found

    def _follow(self, func: Any, name: str, args: Any, given: dict[str, Any], found: Any) -> None:
        """Keep the values of what was computed from known values alone."""
        made = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
        used = [one for one in tree_leaves((args, given)) if is_on_device(one)]
        is_known = self._values.has_all(used)
        if name.endswith("_") and not is_known:
            self._values.forget(args[0])
            return
        if not made or not is_known or (not used and name not in FACTORIES):
            return
        if not used and made[0].dtype.is_floating_point:
            return
        if sum(one.numel() for one in made) <= MOST:
            for one, values in zip(
                made, tree_leaves(self._values.compute(func, args, given)), strict=True
            ):
                self._values.follow(one, values)

    def _convert(self, _func: Any, args: Any, given: dict[str, Any]) -> Tensor:
        """Copy or convert a tensor, whatever device it is on."""
        tensor: Tensor = args[0]
        dtype = given.get("dtype") or tensor.dtype
        target = torch.device(given.get("device") or tensor.device)
        if not is_on_device(tensor):
            if not given.get("non_blocking"):
                self.ledger.add_wait("copy to the device")
            return self._send(tensor.to(dtype) if not isinstance(tensor, FakeTensor) else tensor)
        if target.type == "cuda":
            found: Tensor = self._run(_func, "_to_copy", args, given)
            self._follow(_func, "_to_copy", args, given, found)
            return found
        self.ledger.add_wait("copy to the host")
        values = self._values.find(tensor)
        return invent(tensor.shape, dtype) if values is None else values.to(dtype)

    def _copy(self, func: Any, args: Any, given: dict[str, Any]) -> Tensor:
        """Copy into a tensor, from one on whatever device."""
        target, source = args[:2]
        if is_on_device(target) and is_on_device(source):
            found: Tensor = self._run(func, "copy_", args, given)
            self._follow(func, "copy_", args, given, found)
            return found
        is_blocking = not (args[2] if len(args) > 2 else given.get("non_blocking"))
        if is_on_device(target):
            if is_blocking:
                self.ledger.add_wait("copy to the device")
            self._values.forget(target)
            if not isinstance(source, FakeTensor) and source.shape == target.shape:
                self._values.keep(target, source.to(target.dtype))
        else:
            self.ledger.add_wait("copy to the host")
            target.copy_(invent(source.shape, source.dtype))
        return torch.as_tensor(target)

    def _read(self, _func: Any, args: Any, _given: dict[str, Any]) -> Any:
        """Give the host one value."""
        self.ledger.add_wait("read by the host")
        values = self._values.find(args[0])
        if values is not None:
            return values.item()
        return args[0].dtype == torch.bool or 1

    def _compare(self, _func: Any, args: Any, _given: dict[str, Any]) -> bool:
        """Compare two tensors for the host."""
        self.ledger.add_wait("compared for the host")
        pair = [self._values.find(one) for one in args[:2]]
        return pair[0] is None or pair[1] is None or torch.equal(pair[0], pair[1])

    def _pin(self, _func: Any, args: Any, _given: dict[str, Any]) -> Any:
        return args[0]

    def _send(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device for one on the CPU."""
        made = self.make(tensor.shape, tensor.dtype)
        return made if isinstance(tensor, FakeTensor) else self._values.keep(made, tensor)

    def _send_indices(self, args: Any) -> Any:
        """Return the arguments of an operator that takes indices, all on the device.

        It is the one mix that CUDA accepts: indices on the CPU are copied, which waits. Of a mask,
        the host needs the number of places first.
        """
        indices: list[Tensor | None] = []
        for given in args[1]:
            index = given
            if index is not None and not is_on_device(index):
                self.ledger.add_wait("indices copied")
                index = self._send(index)
            values = None if index is None else self._values.find(index)
            if index is not None and index.dtype == torch.bool:
                self.ledger.add_wait("mask as index")
            if values is not None and values.dtype == torch.bool:
                indices += [self._send(places) for places in values.nonzero(as_tuple=True)]
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def _place(self, tensor: Tensor) -> Tensor:
        """Return an operand as FakeTensorMode takes it: a number on the CPU loses its value.

        What should have been on the device, which was counted, goes on as if it were.
        """
        if isinstance(tensor, FakeTensor):
            return tensor
        if tensor.dim():
            return self._send(tensor)
        with self.fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    def _convolve(self, func: Any, args: Any, given: dict[str, Any]) -> Tensor:
        """Convolve; cuDNN answers in the layout of what it is given.

        Of frames with the channels first, in 16 bits, it takes a copy of what is given and of what
        it answers: its kernels have the channels last.
        """
        self._check_devices("convolution", args[:3])
        with self.fake:
            found: Tensor = func(*args, **given)
            if any(is_channels_last(one) for one in args[:2]):
                found = torch.empty_like(found, memory_format=torch.channels_last)
        self.memory.add(found)
        if is_copied(args[0]) and not is_channels_last(found):
            self.make((count_bytes(args[0]) + count_bytes(found),), torch.uint8)
        operations = flop_registry[torch.ops.aten.convolution](*args, **given, out_val=found)
        moved = sum(count_bytes(one) for one in (*args[:3], found) if one is not None)
        self.ledger.add_kernel(moved, operations, is_product=True)
        return found

    def _upsample(self, _func: Any, args: Any, given: dict[str, Any]) -> Tensor:
        """Repeat the pixels of a frame [batch, channels, height, width]."""
        del given
        frame, sizes, factors = args[:3]
        sides = sizes or [int(side * by) for side, by in zip(frame.shape[2:], factors, strict=True)]
        layout = torch.channels_last if is_channels_last(frame) else torch.contiguous_format
        with self.fake:
            found = torch.empty(
                (*frame.shape[:2], *sides), dtype=frame.dtype, device=CUDA, memory_format=layout
            )
        self.memory.add(found)
        self.ledger.add_kernel(count_bytes(frame) + count_bytes(found))
        return found

    def _multiply_4bit(self, func: Any, args: Any, given: dict[str, Any]) -> Tensor:
        """Multiply by an NF4 weight as bitsandbytes does beyond 512 rows.

        It dequantises the blocks' maxima, adds their offset, dequantises the weight and multiplies:
        four kernels, with the maxima in float32 and the weight in bf16 while they run.
        """
        inputs, weight, (out, into), _, block = args[:5]
        rows = inputs.numel() // into
        maxima = self.make((out * into // block,), torch.float32)
        whole = self.make((out * into,), torch.bfloat16)
        with self.fake:
            found: Tensor = func(*args, **given)
        self.memory.add(found)
        self.ledger.add_kernel(count_bytes(maxima) * 5 // 4)
        self.ledger.add_kernel(2 * count_bytes(maxima))
        self.ledger.add_kernel(count_bytes(maxima) + count_bytes(weight) + count_bytes(whole))
        self.ledger.add_kernel(
            count_bytes(whole) + count_bytes(inputs) + count_bytes(found),
            2 * rows * out * into,
            is_product=True,
        )
        return found


def is_on_device(value: Any) -> bool:
    """Return whether a value is a tensor on the pretend device."""
    return isinstance(value, FakeTensor) and value.device.type == "cuda"


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor [batch, channels, height, width] has its channels last in memory."""
    return tensor.dim() == len("nchw") and tensor.stride(1) == 1 and tensor.shape[1] > 1


def is_copied(tensor: Tensor) -> bool:
    """Return whether cuDNN copies a frame [batch, channels, height, width] to convolve it."""
    return tensor.dim() == len("nchw") and tensor.element_size() == 2


def is_for_device(given: dict[str, Any]) -> bool:
    """Return whether an operator is to make its result on the pretend device."""
    device = given.get("device")
    return device is not None and torch.device(device).type == "cuda"


def count_bytes(tensor: Any) -> int:
    """Return the bytes of a tensor's elements."""
    return int(tensor.numel() * tensor.element_size())


def invent(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return finite values on the CPU, not all equal, for a tensor whose values nobody knows."""
    count = math.prod(shape)
    return (torch.arange(count, dtype=torch.float32) % 251).to(dtype).reshape(tuple(shape))
