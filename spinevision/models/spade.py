"""SPADE (Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization", arXiv:1903.07291).

Draws frames from label maps. It stands in for the GAN with which Jiang et al. 2026 enlarged their training images "from
segmentation labels"; they do not name it, and SPADE is our guess (PhotoPen, PaddleGAN's tool for label maps, is one). Written from
the paper; the authors' code (CC BY-NC-SA 4.0) was not used.

As in the paper: SPADE residual blocks and nearest upsampling, channels from 16 times ``width`` down to ``width``, spectral
normalisation of every convolution, a multi-scale patch discriminator that sees the label map too, hinge loss, feature matching of
weight 10, Adam with betas 0 and 0.999, learning rates 1e-4 and 4e-4, Glorot initialisation. PhotoPen has 4e-4 and 1e-4, betas 0.9
and 0.999, ``width`` 24 and four scales instead.

Ours: no image encoder; the first map is a convolution of the downsampled label map and of a random vector, where the paper has a
linear layer on the vector alone; one block a resolution; two scales; hinge and feature matching are averaged over scales, the
latter summed over layers; between a label map and the scales read off it there are ``2 width`` channels, the paper's 128 at its
width of 64; the learning rate does not fall; the perceptual term is off and uses ResNet-18 instead of VGG-19. Ignored pixels are a
plane of the map of their own, which is drawn as what lies there in the frames: black where padding alone is ignored, and whatever
annotators left undecided where they drew 255 too.

74,195,781 parameters by default with four labels, of which 5,539,714 are the discriminator's.

A generator can reproduce frames of the patients it learnt from. It is therefore not in the table of architectures, has no
``push_to_hub``, and belongs where the frames themselves may lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.hub.config import ModelFolderError
from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.layers.spade import MultiScaleCritic, SpadeBlock, resize_maps, spectral_conv
from spinevision.models.spade_losses import PerceptualLoss, critic_loss, feature_matching, generator_loss
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch, InputSpec

MAX_WIDTH = 256
FEATURE_MATCHING_WEIGHT = 10.0
PERCEPTUAL_WEIGHT = 10.0
_HALF = (0.5, 0.5, 0.5)


class SpadeNetwork(nn.Module):
    """Label maps and a random vector to frames.

    Args:
        planes: of the one-hot maps.
        width: channels at full size; ``min(16, 2^k)`` times as many at ``2^-k`` of it.
        depth: how often the size doubles from the first map to the frame.
        noise: length of the random vector.
    """

    def __init__(self, planes: int, width: int = 64, depth: int = 5, noise: int = 16) -> None:
        super().__init__()
        self.stride = 2**depth
        channels = [width * min(16, 2**level) for level in range(depth, -1, -1)]
        self.start = spectral_conv(planes + noise, channels[0])
        self.blocks = nn.ModuleList(
            SpadeBlock(before, after, planes, hidden=2 * width)
            for before, after in zip([channels[0], *channels], channels, strict=False)
        )
        self.end = spectral_conv(channels[-1], 3)

    def forward(self, maps: Tensor, noise: Tensor) -> Tensor:
        """One-hot maps (B, planes, H, W), sides divisible by the stride, and noise (B, noise) to frames (B, 3, H, W), -1 to 1."""
        height, width = (side // self.stride for side in maps.shape[-2:])
        everywhere = noise[:, :, None, None].expand(-1, -1, height, width)
        x = self.start(torch.cat([resize_maps(maps, (height, width)), everywhere], dim=1))
        for number, block in enumerate(self.blocks):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(x, maps)
        return torch.tanh(self.end(F.relu(x)))


class SpadeGenerator(LightningModule):
    """Learns to draw frames from label maps; 74,195,781 parameters by default with four labels.

    ``Trainer(...).fit(generator, SpineDataModule(root))`` trains it; validation frames are not looked at. A training that is
    continued from a checkpoint written at the end of an epoch is, on a processor, the same to the last bit as one that was never
    interrupted: the checkpoint keeps the state of the random numbers beside weights and optimisers. With loader processes that
    needs a loader that draws none of them, as ``spinevision data generator`` has.

    Args:
        labels: class names of the maps, or a label space.
        size: height and width of the frames (pixels), multiples of ``2^depth`` and at least twice that.
        width: channels at full size of the generator, and of the discriminator's first layer; 1 to 256, 64 in the paper.
        depth: how often the size doubles from the first map to the frame, 1 to 7.
        noise: length of the random vector, with which one map gives several frames; 0 gives one.
        learning_rate: of the generator.
        critic_learning_rate: of the discriminator.

    Raises:
        ValueError: a size that is no multiple, or a width, depth or noise out of range.
    """

    def __init__(
        self,
        labels: LabelSpace | Sequence[str],
        *,
        size: Sequence[int] = (256, 256),
        width: int = 64,
        depth: int = 5,
        noise: int = 16,
        learning_rate: float = 1e-4,
        critic_learning_rate: float = 4e-4,
    ) -> None:
        super().__init__()
        for name, value, low, high in (("width", width, 1, MAX_WIDTH), ("depth", depth, 1, 7)):
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, found {value!r}")
        if not isinstance(noise, int) or noise < 0:
            raise ValueError(f"noise must be a whole number from 0, found {noise!r}")
        self.preprocess = Preprocess(size, mean=_HALF, std=_HALF)
        stride = 2**depth
        if any(side % stride or side < 2 * stride for side in self.preprocess.size):
            raise ValueError(
                f"the sides of generated frames must be multiples of {stride} pixels, and at least {2 * stride}, found {[*size]}; "
                f"take another size, or a depth other than {depth}"
            )
        self.labels, self.noise = LabelSpace.of(labels), noise
        self.classes = len(self.labels.id2label)
        self.network = SpadeNetwork(self.classes + 1, width, depth, noise)
        self.critic = MultiScaleCritic(self.classes + 1 + 3, width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.parametrizations.weight.original)  # type: ignore[arg-type, union-attr]
        self.learning_rates = (learning_rate, critic_learning_rate)
        self.perceptual: list[PerceptualLoss] = []
        """Empty, or one; in a list so that its weights are no part of the checkpoint."""
        self.automatic_optimization = False
        self._random_state: dict[str, Tensor] = {}
        self.save_hyperparameters(
            {
                "labels": [*self.labels],
                "size": [*self.preprocess.size],
                "width": width,
                "depth": depth,
                "noise": noise,
                "learning_rate": learning_rate,
                "critic_learning_rate": critic_learning_rate,
            }
        )

    @property
    def input_spec(self) -> InputSpec:
        """What it learns from: frames from -1 to 1, and their masks."""
        return InputSpec(self.labels, self.preprocess)

    def one_hot(self, masks: Tensor) -> Tensor:
        """Label ids (B, H, W), 255 = ignore, to float maps (B, classes + 1, H, W); the last plane holds the ignored pixels."""
        ids = torch.where(masks == IGNORE_INDEX, self.classes, masks.long())
        return F.one_hot(ids, self.classes + 1).movedim(-1, 1).to(self.preprocess.mean.dtype)

    # Drawing

    def forward(self, masks: Tensor, noise: Tensor) -> Tensor:
        """Label ids (B, H, W) at the size of the frames and noise (B, noise) to frames (B, 3, H, W), -1 to 1."""
        frames: Tensor = self.network(self.one_hot(masks), noise)
        return frames

    @torch.no_grad()
    def generate(self, mask: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw one frame for a label map of any size.

        Args:
            mask: uint8 label ids (H, W), 255 = ignore.
            seed: of the random vector.

        Returns:
            frame: uint8 (h, w, 3) RGB, its longer side that of ``size``, in the aspect of the map.
            mask: uint8 (h, w), the map exactly as the generator was given it.

        Raises:
            ValueError: ids that are no class.
        """
        if strange := sorted(set(np.unique(mask).tolist()) - {*self.labels.id2label, IGNORE_INDEX}):
            raise ValueError(f"the map holds {strange}, which is no class of this generator ({self.labels.id2label})")
        place, _, _ = self.preprocess.place(*mask.shape)
        given = self.preprocess.resize_mask(mask)
        noise = torch.randn(1, self.noise, generator=torch.Generator().manual_seed(seed))
        training = self.training
        self.eval()
        drawn = to_uint8(self(given[None].to(self.device), noise.to(self.device))[0]).movedim(0, -1).cpu()
        self.train(training)
        inner = slice(place.top, place.top + place.scaled_height), slice(place.left, place.left + place.scaled_width)
        return drawn[inner].contiguous().numpy(), given[inner].contiguous().numpy()

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each of the two networks."""
        return [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.999))
            for network, rate in zip((self.network, self.critic), self.learning_rates, strict=True)
        ]

    def training_step(self, batch: FrameBatch, batch_idx: int) -> None:
        """One step of the discriminator, then one of the generator against the discriminator as it is by then."""
        assert batch.masks is not None
        for_generator, for_critic = self.optimizers()  # type: ignore[attr-defined]
        real, maps = batch.frames, self.one_hot(batch.masks)
        fake = self.network(maps, torch.randn(len(batch), self.noise, device=self.device))

        scores = [outputs[-1].chunk(2) for outputs in self._judge(real, fake.detach(), maps)]
        judging = critic_loss([pair[0] for pair in scores], [pair[1] for pair in scores])
        for_critic.zero_grad()
        self.manual_backward(judging)
        for_critic.step()

        self.critic.requires_grad_(False)
        pairs = [[output.chunk(2) for output in outputs] for outputs in self._judge(real, fake, maps)]
        reals, fakes = ([[pair[side] for pair in outputs] for outputs in pairs] for side in (0, 1))
        terms = {
            "adversarial": generator_loss([outputs[-1] for outputs in fakes]),
            "feature_matching": FEATURE_MATCHING_WEIGHT * feature_matching(reals, fakes),
        }
        for loss in self.perceptual:
            terms["perceptual"] = PERCEPTUAL_WEIGHT * loss(fake, real)
        for_generator.zero_grad()
        self.manual_backward(torch.stack([*terms.values()]).sum())
        for_generator.step()
        self.critic.requires_grad_(True)
        told = {"critic": judging.detach(), **{name: term.detach() for name, term in terms.items()}}
        self.log_dict(told, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch))

    def _judge(self, real: Tensor, fake: Tensor, maps: Tensor) -> list[list[Tensor]]:
        """What the discriminator says of real frames and, behind them in the batch, of generated ones."""
        judged: list[list[Tensor]] = self.critic(torch.cat([real, fake]), torch.cat([maps, maps]))
        return judged

    # Checkpoints

    def on_fit_start(self) -> None:
        """Continue the random numbers of the training that is resumed; nothing is drawn between here and the first batch."""
        for loss in self.perceptual:
            loss.to(self.device)
        if self._random_state:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if "cuda" in self._random_state and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random_state["cuda"].cpu(), self.device)
            self._random_state = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the state of the random numbers beside weights and optimisers, as plain data."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["spinevision"] = {
            "architecture": type(self).__name__,
            "epochs": self.trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            "random_state": state,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers for :meth:`on_fit_start`."""
        self._random_state = dict(checkpoint["spinevision"]["random_state"])

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Load a checkpoint of a generator, in eval mode; no code in it is run.

        Raises:
            ModelFolderError: not such a checkpoint.
        """
        checkpoint = read_checkpoint(path)
        try:
            generator = cls(**checkpoint["hyper_parameters"])
            generator.load_state_dict(checkpoint["state_dict"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelFolderError(f"{path} does not fit {cls.__name__} ({_reason(error)}); train it anew") from error
        return generator.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint of a generator as plain data and tensors; ``spinevision.epochs`` says how many epochs it has seen.

    Raises:
        ModelFolderError: not such a checkpoint.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        kind = checkpoint["spinevision"]["architecture"]
        if kind != SpadeGenerator.__name__ or not {"hyper_parameters", "state_dict"} <= {*checkpoint}:
            raise ValueError(f"it is of {kind}")
    except Exception as error:  # damaged files make torch raise anything
        raise ModelFolderError(f"{path} is not the checkpoint of a generator that can be read ({_reason(error)})") from error
    return checkpoint


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def to_uint8(frames: Tensor) -> Tensor:
    """Frames from -1 to 1 to uint8, the exact way back from what :class:`Preprocess` made of them."""
    return ((frames.float() / 2 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
