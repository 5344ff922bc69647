"""A new architecture: one file like this one, and one line in the table of ``spinevision/models/__init__.py``.

python examples/new_architecture.py OUTPUT     trains it for an epoch on generated scenes, saves it there and loads it back
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from lightning import Trainer
from torch import Tensor, nn

from spinevision import LabelSpace, Preprocess, SpineDataModule, SpineSegmenter
from spinevision.models import ARCHITECTURES
from spinevision.phantom import write_phantoms


class DilatedNetwork(nn.Module):
    """The pure network: frames (B, 3, H, W) in, logits (B, channels, H, W) out, at any size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(4):
            before = width if index else 3
            layers += [
                nn.Conv2d(before, width, 3, padding=2**index, dilation=2**index, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, channels, 1)  # what depends on the classes is called "head"

    def forward(self, frames: Tensor) -> Tensor:
        """Logits, never activated."""
        return self.head(self.body(frames)).float()


class DilatedNet(SpineSegmenter):
    """Four dilated convolutions; training, prediction, saving and loading come from SpineSegmenter."""

    SMALL: ClassVar = {"width": 4}  # the arguments of a tiny one, for the contract tests

    def __init__(self, labels: LabelSpace | Sequence[str], *, width: int = 16, preprocess: Preprocess | None = None) -> None:
        labels = LabelSpace.of(labels)
        super().__init__(labels, DilatedNetwork(labels.channels, width), preprocess, {"width": width})


ARCHITECTURES["DilatedNet"] = __name__  # the one line; in the package: "DilatedNet": "spinevision.models.dilated_net",


def main(output: str) -> None:
    """Train on generated scenes, save, load back."""
    with tempfile.TemporaryDirectory() as scratch:
        root = write_phantoms(Path(scratch) / "data", patients=6, frames=4, size=(64, 64))
        model = DilatedNet(labels=["nerve"], preprocess=Preprocess(size=(64, 64)))
        trainer = Trainer(max_epochs=1, default_root_dir=scratch, logger=False, enable_checkpointing=False)
        trainer.fit(model, SpineDataModule(root=root, num_workers=0))

    model.save_pretrained(output)
    loaded = SpineSegmenter.from_pretrained(output)
    frames = torch.rand(1, 3, 64, 64)
    model.eval()
    with torch.inference_mode():
        assert torch.equal(loaded(frames), model(frames))
    print(f"{type(loaded).__name__} trained, saved to {output} and loaded back")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
