"""Published weights of ResNets."""

from __future__ import annotations

from spinevision.encoders.weights import WeightFamily, same_name

RESNET_WEIGHTS = (WeightFamily("torchvision ResNet", same_name, unneeded=(r"fc\.",)),)
"""torchvision's layout, which timm's plain ResNets (``timm/resnet18.a1_in1k``) have as well; our tensors bear these names."""
