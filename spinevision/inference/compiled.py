"""A network's method compiled for the shapes it will see, and for no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as tracing
from torch._inductor import config as inductor

_VARIANTS = 256
"""How many compiled variants of one function a process may hold; torch's own limit of 8 is for one model."""

_Shape = tuple[torch.dtype, torch.device, tuple[int, ...]]


class CompiledCall:
    """A callable that runs compiled for the shapes it has learnt, and as it is for all others.

    A batch smaller than one that was learnt is filled up by repeating its last frame, and the answers to that are cut off. On a
    GPU the compiled calls are CUDA graphs, and their results are copied, because the next call overwrites them.

    Args:
        call: a network's method, called with tensors and tuples of tensors.
        device: where its weights are.
    """

    def __init__(self, call: Callable[..., Any], device: torch.device) -> None:
        self._call = call
        self._graphs = device.type == "cuda"
        options: dict[str, Any] = {"triton.cudagraphs": True} if self._graphs else {}
        self._compiled = torch.compile(call, dynamic=False, fullgraph=True, options=options)
        self._known: set[tuple[_Shape, ...]] = set()

    def learn(self, *inputs: Any) -> Any:
        """Compile for inputs of this kind, with the weights as constants; answers them."""
        self._known.add(_key(inputs))
        limits: dict[str, Any] = {"recompile_limit": _VARIANTS, "accumulated_recompile_limit": 8 * _VARIANTS}
        with torch.inference_mode(), inductor.patch(freezing=True), tracing.patch(**limits):
            for _ in range(3 if self._graphs else 1):  # a CUDA graph is recorded in the second call
                answer = self._run(*inputs)
        return answer

    def __call__(self, *inputs: Any) -> Any:
        """Answer, without a gradient."""
        with torch.inference_mode():
            if _key(inputs) in self._known:
                return self._run(*inputs)
            batch = self._bucket(inputs)
            if batch is None:
                return self._call(*inputs)
            frames = inputs[0]
            filling = frames[-1:].expand(batch - len(frames), *frames.shape[1:])
            return self._run(torch.cat((frames, filling)))[: len(frames)]

    def _bucket(self, inputs: tuple[Any, ...]) -> int | None:
        """The next larger batch that was learnt of such frames."""
        if len(inputs) != 1:
            return None
        ((dtype, device, (batch, *rest)),) = _key(inputs)
        sizes = [
            shape[0]
            for known in self._known
            for known_dtype, known_device, shape in known[:1]
            if len(known) == 1 and (known_dtype, known_device, [*shape[1:]]) == (dtype, device, rest) and shape[0] > batch
        ]
        return min(sizes, default=None)

    def _run(self, *inputs: Any) -> Any:
        inputs = _each(inputs, _uniform)
        if not self._graphs:
            return self._compiled(*inputs)
        torch.compiler.cudagraph_mark_step_begin()
        return _each(self._compiled(*inputs), Tensor.clone)


def missing_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled on this machine, or None where it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton, which compiles for GPUs, is not installed or does not know this one"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError):
        return "there is no C++ compiler (such as g++) on this machine; install one and it runs faster"
    return None


def _key(inputs: tuple[Any, ...]) -> tuple[_Shape, ...]:
    return tuple((tensor.dtype, tensor.device, tuple(tensor.shape)) for tensor in _tensors(inputs))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Every tensor of nested tuples."""
    if isinstance(values, Tensor):
        yield values
    else:
        for value in values:
            yield from _tensors(value)


def _uniform(tensor: Tensor) -> Tensor:
    """One layout and one kind of tensor; another would be compiled anew."""
    own = tensor if tensor.is_inference() else tensor.clone()
    return own.contiguous().view(-1).view(tensor.shape)  # twice, for the strides of sides of one pixel


def _each(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of nested tuples."""
    if isinstance(values, Tensor):
        return change(values)
    return tuple(_each(value, change) for value in values)
