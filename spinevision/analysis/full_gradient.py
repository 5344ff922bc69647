"""FullGrad (Srinivas and Fleuret 2019, arXiv 1905.00780): an output as the sum of what the input and every bias contribute to it.

Of a network of affine operations, ReLU and maximum pooling, every output is ``f = <x, df/dx> + sum over biases of <b, df/dz>``
(their proposition 1), z being what the bias was added to give. A bias counts each time it is used, by whatever module or function:
the bias of an affine operation is its answer to zero, which for batch normalisation in eval mode is ``beta - mean gamma /
sqrt(variance + eps)``. Operations of other kinds (sigmoids, LayerNorm, products of two maps) make the sum miss the output;
:class:`Completeness` says by how much, and their names are recorded.

Deviations from the authors' code (idiap/fullgrad-saliency, MIT, read and not copied): biases meet their gradients as they are used,
not by order of registration; added constants are biases too; what has no place in the frame is left out of the saliency; maps are
enlarged with half-pixel centres in place of aligned corners and lie where they belong when the network pads; psi has no epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_WEIGHTED = {"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}
"""Functions whose third argument is a bias."""
_NORMS = {"batch_norm", "instance_norm", "layer_norm", "group_norm"}
_SUMS = {"add", "add_", "sub", "sub_", "rsub", "__rsub__"}
_PRODUCTS = {"mul", "mul_", "matmul", "bmm", "einsum", "div", "div_", *_WEIGHTED}
_CURVED = {
    *("sigmoid", "softmax", "tanh", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "clamp", "elu", "softplus"),
    *("layer_norm", "group_norm", "instance_norm", "scaled_dot_product_attention"),
    *("exp", "log", "logsumexp", "pow", "sqrt", "rsqrt", "var", "std", "var_mean", "__rdiv__"),
}
"""Functions that are not their gradient times their input."""
_FEATURES_LAST = {"linear", "layer_norm"}
NEAR_ZERO = 1e-3
"""An output below this share of the terms' absolute sum is too near zero to be a scale; the share is then the scale. Ours."""


class Completeness(NamedTuple):
    """How well the terms add up to the output.

    Attributes:
        output: the number explained.
        total: the sum of the input's term and those of all biases.
        scale: ``|output|``, or 0.001 of the sum of the absolute terms where that is more.
        residual: ``|output - total| / scale``; NaN where all are 0.
        biases: how many terms there are besides that of the input.
        unplaced: share of the biases' absolute terms that have no place in the frame and are not in the saliency, 0 to 1.
        curved: functions that ran on what depends on the input and are not their gradient times it, by name, as far as known here;
            the residual is the judge.
    """

    output: float
    total: float
    scale: float
    residual: float
    biases: int
    unplaced: float
    curved: tuple[str, ...]


class Maps(NamedTuple):
    """One backward pass, each map float (H, W) at the size of the input.

    Attributes:
        full_gradient: sum over channels and biases of ``psi(x * df/dx)`` and ``psi(b * df/dz)``, psi being the absolute value
            brought to 0 to 1 over the whole of its tensor (section 4 of the paper).
        grad_cam: Selvaraju et al. 2017 (arXiv 1610.02391, equations 1 and 2): ReLU of the sum of the layer's channels, each
            times the mean of its gradient.
        input_gradient: largest absolute gradient of the channels (Simonyan et al. 2013, arXiv 1312.6034, section 3.1).
        completeness: of the full gradient.
    """

    full_gradient: Tensor
    grad_cam: Tensor
    input_gradient: Tensor
    completeness: Completeness


class _Bias(NamedTuple):
    edge: GradientEdge
    value: Callable[[], Tensor]
    features_last: bool


class _Recorder(TorchFunctionMode):
    """Sees every call of a torch function, by modules and by hand; what requires a gradient is what depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.biases: list[_Bias] = []
        self.curved: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name not in _WEIGHTED | _NORMS | _SUMS | _PRODUCTS | _CURVED:
            return func(*args, **kwargs)
        depending = [_depends(value) for value in (*args, *kwargs.values())]
        value = _answer_to_zero(func, args, kwargs) if _has_bias(name, args, kwargs) and any(depending) else None
        out = func(*args, **kwargs)
        if value is not None:
            self.biases.append(_Bias(get_gradient_edge(out), value, name in _FEATURES_LAST))
        if name in _PRODUCTS and sum(depending) > 1:
            self.curved.add("product of two maps")
        elif name in _CURVED and any(depending):
            self.curved.add(name.strip("_"))
        return out


def _depends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_bias(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if name in _WEIGHTED:
        return (args[2] if len(args) > 2 else kwargs.get("bias")) is not None
    return name in _NORMS or (name in _SUMS and not all(map(_depends, [*args, *kwargs.values()][:2])))


def _answer_to_zero(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Tensor]:
    """What the function answers if all that depends on the input is zero, to be computed once, when it is asked for."""

    def zero(value: Any) -> Any:
        value = value.new_zeros(()).expand(value.shape) if _depends(value) else value
        return value.clone(memory_format=torch.contiguous_format) if in_place and isinstance(value, Tensor) else value

    in_place = func.__name__ in {"add_", "sub_"}
    return partial(func, *map(zero, args), **{key: zero(value) for key, value in kwargs.items()})


class Recording(NamedTuple):
    """One forward pass of one frame, with all that a backward pass needs.

    Attributes:
        logits: what the network answered.
        layer: the name of the layer that Grad-CAM looks at.
        order: the names of the modules with parameters of their own, in the order of their first calls; before them those that are
            not called, as lists of parameters are not. The network itself is "".
    """

    logits: Tensor
    layer: str
    order: tuple[str, ...]
    frame: Tensor
    feature: Tensor
    feature_edge: GradientEdge
    biases: Sequence[_Bias]
    curved: tuple[str, ...]

    def backward(self, output: Tensor) -> Maps:
        """Explain ``output``, a scalar made of :attr:`logits`, by one backward pass; it can be done once."""
        edges = [get_gradient_edge(self.frame), self.feature_edge, *(bias.edge for bias in self.biases)]
        gradients = torch.autograd.grad(output, edges, allow_unused=True)
        with torch.no_grad():
            return self._maps(output.item(), *gradients)

    def _maps(self, output: float, slope: Tensor | None, feature_slope: Tensor | None, *slopes: Tensor | None) -> Maps:
        size = self.frame.shape[-2:]
        slope = torch.zeros_like(self.frame) if slope is None else slope
        product = self.frame.detach() * slope
        saliency, terms, unplaced = _psi(product[0]), [_total(product)], 0.0
        for bias, gradient in zip(self.biases, slopes, strict=True):
            if gradient is None:  # the output does not depend on this use
                terms.append(0.0)
                continue
            product = bias.value() * gradient
            terms.append(_total(product))
            if bias.features_last and product.ndim == 4:
                product = product.permute(0, 3, 1, 2)
            if has_place(product, size):
                saliency = saliency + enlarge(_psi(product[0]), size)
            else:
                unplaced += abs(terms[-1])
        weights = torch.zeros_like(self.feature) if feature_slope is None else feature_slope.mean(dim=(2, 3), keepdim=True)
        cam = enlarge((weights * self.feature).sum(dim=1)[0].relu(), size)
        return Maps(saliency, cam, slope.abs().amax(dim=1)[0], self._completeness(output, terms, unplaced))

    def _completeness(self, output: float, terms: Sequence[float], unplaced: float) -> Completeness:
        total, absolute = math.fsum(terms), math.fsum(map(abs, terms))
        scale = max(abs(output), NEAR_ZERO * absolute)
        residual = abs(output - total) / scale if scale else math.nan
        share = unplaced / (absolute - abs(terms[0])) if unplaced else 0.0
        return Completeness(output, total, scale, residual, len(terms) - 1, share, self.curved)


def record(
    network: nn.Module,
    state: Mapping[str, Tensor],
    frame: Tensor,
    *,
    layer: str | None = None,
    head: Sequence[str] = ("head",),
) -> Recording:
    """Run a network, in eval mode, on one frame with these parameters and buffers in place of its own, which stay as they are.

    Args:
        network: any module.
        state: parameters and buffers by name, of one floating type; :func:`state_of` makes one.
        frame: (1, 3, H, W) of that type.
        layer: the module whose output, on its last call, Grad-CAM looks at: a map (1, C, h, w) over the frame. None takes the map
            that enters the head, or where the head takes a vector, the last map before it.
        head: the names of the modules that make logits.

    Raises:
        ValueError: no such layer, or one whose output is no map over the frame.
    """
    size = frame.shape[-2:]
    found: tuple[str, Tensor, GradientEdge] | None = None
    calls: dict[str, int] = {}
    arrived = False

    def keep(name: str, value: Any) -> None:
        nonlocal found
        if isinstance(value, Tensor) and value.requires_grad and has_place(value, size):
            found = name, value.detach().clone(), get_gradient_edge(value)

    def before(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal arrived
        calls.setdefault(name, len(calls))
        if layer is None and not arrived and any(f"{name}.".startswith(f"{part}.") for part in head):
            arrived = True
            keep(f"input of {name}", inputs[0])

    def after(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if name and (name == layer if layer is not None else not arrived):
            keep(name, output)

    modules = dict(network.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(f"the network has no layer {layer!r}; its parts are {', '.join(dict(network.named_children()))}")
    with ExitStack() as hooks, torch.enable_grad():
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(partial(before, name)).remove)
            hooks.callback(module.register_forward_hook(partial(after, name)).remove)
        frame = frame.detach().clone().requires_grad_()
        with _Recorder() as recorder:
            logits = functional_call(network, dict(state), (frame,))
    if found is None:
        raise ValueError(
            f"layer {layer or 'before the head'!r} gives no map of the frame, (1, channels, height, width); name another"
        )
    holders = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
    order = sorted(holders, key=lambda name: calls.get(name, -1))
    chosen, feature, edge = found
    return Recording(logits, chosen, tuple(order), frame, feature, edge, recorder.biases, tuple(sorted(recorder.curved)))


def state_of(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and buffers by name without gradients, floating ones in this type."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: value.detach().to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def _total(values: Tensor) -> float:
    return values.sum(dim=-1).cpu().double().sum().item()  # some devices have no float64


def _psi(values: Tensor) -> Tensor:
    """Sum over the channels of the absolute values (C, h, w), brought to 0 to 1 over all of them; 0 where all are equal."""
    values = values.abs()
    low, high = values.amin(), values.amax()
    return ((values - low) / (high - low)).sum(dim=0) if high > low else torch.zeros_like(values[0])


def _stride(side: int, cells: int) -> float:
    """Pixels per cell, a power of two: cells may cover padding beyond the side, or a little less than the side."""
    return 2.0 ** math.ceil(math.log2(side / cells / 1.1))


def has_place(values: Tensor, size: Sequence[int]) -> bool:
    """Whether a tensor is a map (1, C, h, w) over a frame of this size: more than one cell, and of one stride along both sides."""
    if values.ndim != 4 or values.shape[0] != 1 or 0 in values.shape or values.shape[2:] == (1, 1):
        return False
    return _stride(size[0], values.shape[2]) == _stride(size[1], values.shape[3])


def enlarge(values: Tensor, size: Sequence[int]) -> Tensor:
    """A map (h, w) over a frame to the frame's size, bilinear with half-pixel centres; what covers padding is cut off."""
    covered = [max(side, round(cells * _stride(side, cells))) for side, cells in zip(size, values.shape, strict=True)]
    if [*values.shape] != covered:
        values = F.interpolate(values[None, None], covered, mode="bilinear", align_corners=False)[0, 0]
    return values[: size[0], : size[1]]
