"""Random changes to frames and their masks, drawn once for both and once for a whole clip; runs on the device the tensors are on.

kornia moves the pixels. What is ours: operations that cannot move a mask are refused, and what comes from outside the frame is
ignored by every loss and metric instead of counting as background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample
from torch import Tensor, nn

_GEOMETRIC = (
    K.RandomAffine,
    K.RandomCrop,
    K.RandomElasticTransform,
    K.RandomHorizontalFlip,
    K.RandomPerspective,
    K.RandomResizedCrop,
    K.RandomRotation,
    K.RandomRotation90,
    K.RandomShear,
    K.RandomTranslate,
    K.RandomVerticalFlip,
)
"""The kornia operations whose masks the tests found to move exactly as their frames do."""

_REFUSED_INTENSITY = (
    K.Normalize,  # values leave 0-1; Preprocess does this, after augmentation
    K.Denormalize,
    K.RandomErasing,  # the frame loses what the mask still shows
    K.RandomDissolving,  # downloads a generative model
)


@dataclass(frozen=True)
class AugmentSettings:
    """How strongly frames are changed in training; zero (for ``scale``: 1, 1) switches an operation off. All defaults are ours.

    Every frame draws its own values, a clip draws one set for all its frames. Noise and lighting are given to half of the frames.

    Args:
        horizontal_flip: probability, 0 to 1.
        vertical_flip: probability, 0 to 1; an endoscope has no fixed "up".
        rotation_degrees: largest angle to either side, 0 to 180.
        scale: smallest and largest magnification. Above 1 crops: with ``translation`` the window lies at a random place.
        translation: largest shift, as a fraction of width and height, 0 to 1.
        brightness: largest relative change, 0 to 1.
        contrast: largest relative change about the frame's mean, 0 to 1.
        saturation: largest relative change, 0 to 1.
        hue: largest turn of the hue circle, in turns, 0 to 0.5.
        blur: probability of a Gaussian blur with a deviation of 0.3 to 1.5 pixels, 0 to 1.
        noise: largest standard deviation of Gaussian noise, on the scale where white is 1, 0 to 1.
        lighting: largest strength of the spotlight of an endoscope, brighter at a random place and darker away from it, 0 to 1.

    Raises:
        ValueError: a value outside its range.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    rotation_degrees: float = 30.0
    scale: tuple[float, float] = (0.8, 1.25)
    translation: float = 0.1
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    blur: float = 0.2
    noise: float = 0.03
    lighting: float = 0.3

    def __post_init__(self) -> None:
        limits = {"rotation_degrees": 180.0, "hue": 0.5}
        for name in (entry.name for entry in fields(self) if entry.name != "scale"):
            value, limit = getattr(self, name), limits.get(name, 1.0)
            if not _is_number(value) or not 0 <= value <= limit:
                raise ValueError(f"augmentation setting {name} must be a number from 0 to {limit:g}, found {value!r}")
        scale = tuple(self.scale) if isinstance(self.scale, (list, tuple)) else ()
        if len(scale) != 2 or not all(map(_is_number, scale)) or not 0.1 <= scale[0] <= scale[1] <= 10:
            raise ValueError(f"augmentation setting scale must be two numbers from 0.1 to 10, smallest first, found {self.scale!r}")
        object.__setattr__(self, "scale", scale)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Augment(nn.Module):
    """Apply random operations to frames and masks alike: one draw for both, and one for all frames of a clip.

    Masks are sampled by nearest neighbour, so no label is ever invented. What comes from outside the frame is black in the frame
    and ``IGNORE_INDEX`` in the mask. Computes in float32 without gradients, also under autocast. The same ``torch.manual_seed``
    gives the same result on the same device.

    Args:
        operations: kornia augmentations, applied in this order: those whose masks are known to move with the frame (flips, affine,
            rotation, shear, translation, perspective, elastic, crops) and those that change values only. None: nothing is changed.

    Raises:
        ValueError: an operation that cannot move masks, or that fills from outside the frame with anything but zeros; the sentence
            names it.
    """

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        for operation in operations:
            _check_operation(operation)
        self.pipeline = K.AugmentationSequential(
            K.VideoSequential(*operations, data_format="BTCHW", same_on_frame=True),
            data_keys=[DataKey.INPUT, DataKey.MASK],
            extra_args={DataKey.MASK: {"resample": Resample.NEAREST}},
        )

    @classmethod
    def from_settings(cls, settings: AugmentSettings) -> Augment:
        """Build the operations that the settings leave switched on: first those on values, so that what is outside stays black."""
        operations: list[nn.Module] = []
        color = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
        if any(color):
            operations.append(ColorShift(*color))
        if settings.lighting:
            operations.append(SpotLight(settings.lighting))
        if settings.blur:
            operations.append(K.RandomGaussianBlur((7, 7), (0.3, 1.5), p=settings.blur))
        if settings.noise:
            operations.append(SensorNoise(settings.noise))
        if settings.horizontal_flip:
            operations.append(K.RandomHorizontalFlip(p=settings.horizontal_flip))
        if settings.vertical_flip:
            operations.append(K.RandomVerticalFlip(p=settings.vertical_flip))
        if settings.rotation_degrees or settings.translation or settings.scale != (1, 1):
            shift = (settings.translation, settings.translation)
            operations.append(K.RandomAffine(settings.rotation_degrees, translate=shift, scale=settings.scale, p=1.0))
        return cls(operations)

    @torch.no_grad()
    def forward(self, frames: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Draw and apply.

        Args:
            frames: (B, 3, H, W), or clips (B, T, 3, H, W); uint8 0-255 or float 0-1.
            masks: uint8 ids (B, H, W), or (B, T, H, W); 255 = ignore. None for frames without, which are changed as with them.

        Returns:
            Frames, float32 0-1, and masks, uint8, or None; in the shapes given, but for the size of a crop.

        Raises:
            ValueError: other shapes or types, or float frames outside 0-1.
        """
        _check_tensors(frames, masks)
        values = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        single = frames.ndim == 4
        # In uint8, ids plus one turn 255 into 0: kornia fills with zeros, so ignored and outside are the same number.
        tensors = [values] if masks is None else [values, (masks + 1).float().unsqueeze(-3)]
        if single:
            tensors = [tensor.unsqueeze(1) for tensor in tensors]
        with torch.autocast(frames.device.type, enabled=False):
            changed = self.pipeline(*tensors, data_keys=[DataKey.INPUT, DataKey.MASK][: len(tensors)])
        values, *codes = [changed] if masks is None else changed
        if single:
            values, codes = values.squeeze(1), [code.squeeze(1) for code in codes]
        return values.clamp(0, 1), codes[0].squeeze(-3).round().to(torch.uint8) - 1 if codes else None


def _check_operation(operation: nn.Module) -> None:
    """Refuse what cannot be trusted with a mask."""
    name = type(operation).__name__
    if isinstance(operation, _REFUSED_INTENSITY) or not isinstance(operation, (*_GEOMETRIC, K.IntensityAugmentationBase2D)):
        known = ", ".join(kind.__name__ for kind in _GEOMETRIC)
        raise ValueError(
            f"{name} cannot move or keep masks with their frames; use {known}, or an operation that changes values only"
        )
    flags: dict[str, Any] = operation.flags
    padding = flags.get("padding_mode", "zeros")
    if (
        (padding if isinstance(padding, str) else padding.name).lower() not in ("zeros", "constant")
        or flags.get("fill_value") is not None
        or flags.get("fill", 0) != 0
    ):
        raise ValueError(
            f"{name} fills from outside the frame with something other than zeros, which the mask cannot follow; "
            "leave its padding mode and fill value at their defaults"
        )


def _check_tensors(frames: Tensor, masks: Tensor | None) -> None:
    expected = (*frames.shape[:-3], *frames.shape[-2:])
    if frames.ndim not in (4, 5) or frames.shape[-3] != 3 or not (frames.dtype == torch.uint8 or frames.is_floating_point()):
        raise ValueError(
            f"frames must be uint8 or float with shape (B, 3, H, W) or (B, T, 3, H, W), found {frames.dtype} {tuple(frames.shape)}"
        )
    if masks is not None and (masks.shape != expected or masks.dtype != torch.uint8):
        raise ValueError(
            f"masks must be uint8 with shape {expected} to go with the frames, found {masks.dtype} {tuple(masks.shape)}"
        )
    if frames.is_floating_point() and not (frames.min() >= 0 and frames.max() <= 1):
        raise ValueError("float frames must hold values from 0 to 1; augment before the frames are normalised")


class _ValueOperation(K.IntensityAugmentationBase2D):
    """A change of values whose draw is a table of uniform numbers from -1 to 1, one row a frame (or a clip)."""

    columns: int

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"draw": torch.rand(batch_shape[0], self.columns) * 2 - 1}


class ColorShift(_ValueOperation):
    """Change brightness, contrast, saturation and hue in one matrix product a frame.

    In the HSI model, whose intensity is the mean of R, G and B: saturation scales the distance from the grey axis, hue turns
    around it, contrast scales the distance from the frame's mean intensity and brightness multiplies. kornia's own jitter goes
    through HSV and takes ten times as long.

    Args:
        brightness: largest relative change, 0 to 1.
        contrast: likewise.
        saturation: likewise.
        hue: largest turn, in turns.
        p: probability for a frame or clip.
    """

    columns = 4

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.limits = (brightness, contrast, saturation, 2 * math.pi * hue)

    def apply_transform(
        self, frames: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Frames (B, 3, H, W), 0-1; drawn values beyond 0-1 are cut off."""
        draw = params["draw"].to(frames) * frames.new_tensor(self.limits)
        brightness, contrast, saturation = (1 + draw[:, :3]).unbind(1)
        turn = draw[:, 3]
        grey = frames.new_full((3, 3), 1 / 3)
        around = frames.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        along, across = (saturation * turn.cos()).view(-1, 1, 1), (saturation * turn.sin()).view(-1, 1, 1)
        matrix = along * torch.eye(3).to(frames) + (1 - along) * grey + across * around
        offset = brightness * (1 - contrast) * frames.mean((1, 2, 3))
        matrix = matrix * (brightness * contrast).view(-1, 1, 1)
        changed = torch.baddbmm(offset.view(-1, 1, 1), matrix, frames.flatten(2))
        return changed.clamp_(0, 1).view_as(frames)


class SpotLight(_ValueOperation):
    """Endoscopic lighting: multiply by a round, smooth spot, up to ``1 + strength`` at its centre and ``1 - strength`` far away.

    Black stays black. The centre lies within the middle half of the frame, the spot's deviation is 0.4 to 1 of half the frame.

    Args:
        strength: largest strength, 0 to 1.
        p: probability for a frame or clip.
    """

    columns = 4

    def __init__(self, strength: float, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.strength = strength

    def apply_transform(
        self, frames: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Frames (B, 3, H, W), 0-1."""
        draw = params["draw"].to(frames)
        deviation = 0.7 + 0.3 * draw[:, 2]
        rows, columns = (
            (-0.5 * ((torch.linspace(-1, 1, side).to(frames) - 0.5 * draw[:, axis, None]) / deviation[:, None]) ** 2).exp()
            for axis, side in enumerate(frames.shape[2:])
        )
        strength = self.strength * draw[:, 3].abs().view(-1, 1, 1)
        gain = 1 - strength + 2 * strength * rows[:, :, None] * columns[:, None, :]
        return frames * gain[:, None]


class SensorNoise(_ValueOperation):
    """Add Gaussian noise, the same strength for all frames of a clip and new noise in each.

    Args:
        deviation: largest standard deviation, on the scale where white is 1.
        p: probability for a frame or clip.
    """

    columns = 1

    def __init__(self, deviation: float, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.deviation = deviation

    def apply_transform(
        self, frames: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Frames (B, 3, H, W), 0-1; the result may leave that range."""
        return frames + torch.randn_like(frames) * self.deviation * params["draw"].to(frames).abs().view(-1, 1, 1, 1)
