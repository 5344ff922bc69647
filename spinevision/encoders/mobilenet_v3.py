"""Published weights of MobileNetV3: torchvision's layout, whose names our tensors bear, and timm's.

timm (``timm/mobilenetv3_large_100.ra_in1k``) groups the blocks into stages, has a 1x1 convolution on the pooled map where
torchvision has a linear layer, and normalises with an epsilon of 1e-5 where torchvision and we have 1e-3; otherwise the two
compute the same. timm's ``tf_mobilenetv3_*`` bear the same names but pad to one side and have an epsilon of 1e-3. Names and
shapes cannot tell them apart from the others, so do not load those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from spinevision.encoders.weights import Origin, Shape, WeightFamily, same_name

EPSILON = 1e-3
"""Of our batch normalisations."""
TIMM_EPSILON = 1e-5


def rescale(weight: Tensor, running_var: Tensor) -> Tensor:
    """The scale with which our batch normalisation computes in eval mode what timm's does: ``w sqrt((v + 1e-3) / (v + 1e-5))``.

    Args:
        weight: timm's scale, one number a channel.
        running_var: the variance that is kept with it, of the same shape.
    """
    variance = running_var.double()
    return (weight * ((variance + EPSILON) / (variance + TIMM_EPSILON)).sqrt()).to(weight.dtype)


def _timm(repeats: Sequence[int]) -> Callable[[str, Shape], Origin]:
    """Where our tensors come from, for the number of blocks in each of timm's stages."""
    places = [f"blocks.{stage}.{index}" for stage, count in enumerate(repeats) for index in range(count)]
    last = len(places) + 1
    modules = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        f"features.{last}.0": f"blocks.{len(repeats)}.0.conv",
        f"features.{last}.1": f"blocks.{len(repeats)}.0.bn1",
        "classifier.0": "conv_head",
    }
    for number, place in enumerate(places, start=1):
        steps = [("conv_dw", "bn1"), ("conv_pw", "bn2")]  # the first block does not expand
        if number > 1:
            steps = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        ours, squeeze = f"features.{number}.block", len(steps) - 1
        # Before the last step comes the squeeze, where a block has one.
        modules |= {f"{ours}.{squeeze}.fc1": f"{place}.se.conv_reduce", f"{ours}.{squeeze}.fc2": f"{place}.se.conv_expand"}
        for position, (conv, norm) in (*enumerate(steps), (len(steps), steps[-1])):
            modules |= {f"{ours}.{position}.0": f"{place}.{conv}", f"{ours}.{position}.1": f"{place}.{norm}"}

    def origin(name: str, shape: Shape) -> Origin:
        module, _, kind = name.rpartition(".")
        source = modules.get(module, module)  # a block that only the other variant has is missing under our name
        if kind == "weight" and source.rpartition(".")[2].startswith("bn"):
            return Origin((f"{source}.weight", f"{source}.running_var"), rescale)
        if kind == "weight" and source == "conv_head":
            return Origin((f"{source}.weight",), lambda weight: weight.flatten(1))
        return Origin((f"{source}.{kind}",))

    return origin


MOBILENET_V3_WEIGHTS = (
    WeightFamily("torchvision MobileNetV3", same_name, unneeded=(r"classifier\.3\.",)),
    WeightFamily("timm MobileNetV3-Large", _timm((1, 2, 3, 4, 2, 3)), unneeded=(r"classifier\.",)),
    WeightFamily("timm MobileNetV3-Small", _timm((1, 2, 3, 2, 3)), unneeded=(r"classifier\.",)),
)
