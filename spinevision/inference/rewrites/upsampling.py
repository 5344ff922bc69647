"""Nearest-neighbour upsampling and the convolution behind it, in one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spinevision.layers.conv import ConvNormAct


def join_upsampling(network: nn.Module) -> int:
    """Turn each upsampling times 2 (nearest) with a 3x3 convolution behind it into one 4x4 transposed convolution of stride 2.

    An output pixel of the pair sees 3x3 pixels that are copies of 2x2: the weights of the copies are added up beforehand, for each
    of the four phases of the output grid. A transposed convolution of stride 2 is those four 2x2 convolutions with their outputs
    interleaved, and needs 4 products where the pair needs 9.

    Args:
        network: changed in place.

    Returns:
        How many were joined.
    """
    joined = 0
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(sequence) - 1):
            up, after = sequence[index], sequence[index + 1]
            conv = after.conv if isinstance(after, ConvNormAct) else after
            if not _doubles(up) or not isinstance(conv, nn.Conv2d) or not _is_plain(conv):
                continue
            if isinstance(after, ConvNormAct):
                after.conv = phase_convolution(conv)
            else:
                sequence[index + 1] = phase_convolution(conv)
            sequence[index] = nn.Identity()
            joined += 1
    return joined


def phase_convolution(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed convolution that equals nearest-neighbour upsampling times 2 and then a 3x3 one with a border of one zero."""
    transposed = nn.ConvTranspose2d(
        conv.in_channels, conv.out_channels, kernel_size=4, stride=2, padding=1, bias=conv.bias is not None, device="meta"
    ).to_empty(device=conv.weight.device)
    # Along one axis, output 2i is a * x[i-1] + (b + c) * x[i], output 2i + 1 is (a + b) * x[i] + c * x[i+1]. Input x[i] thus
    # reaches the outputs 2i - 1 to 2i + 2 with the factors c, b + c, a + b, a.
    weight = conv.weight.detach().double()
    for axis in (2, 3):
        a, b, c = weight.unbind(axis)
        weight = torch.stack((c, b + c, a + b, a), dim=axis)
    transposed.weight = _constant(weight.transpose(0, 1), conv.weight)
    if conv.bias is not None:
        transposed.bias = _constant(conv.bias.detach(), conv.weight)
    return transposed.eval()


def _doubles(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest" and module.scale_factor == 2


def _is_plain(module: nn.Conv2d) -> bool:
    """A 3x3 convolution of stride 1 with a border of one zero."""
    if type(module) is not nn.Conv2d or module.groups != 1 or module.padding_mode != "zeros":
        return False
    shape = (module.kernel_size, module.stride, module.padding, module.dilation)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1))


def _constant(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype).contiguous(memory_format=_layout(values)), requires_grad=False)


def _layout(values: Tensor) -> torch.memory_format:
    return torch.channels_last if values.ndim == 4 else torch.contiguous_format
