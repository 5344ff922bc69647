"""What every classifier has in common, shown on a network of one convolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from spinevision import Preprocess, PresencePrediction, SpineClassifier, TrainingSettings
from spinevision.structures import FrameBatch


class Redness(nn.Module):
    """The logit of every label is a weighted mean of the frame."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, labels)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(frames.mean((2, 3)))


class RedClassifier(SpineClassifier):
    def __init__(self, labels, *, preprocess=None) -> None:
        super().__init__(labels, Redness(len(labels)), preprocess, {})


def model(*labels: str) -> RedClassifier:
    return RedClassifier(list(labels) or ["presence"], preprocess=Preprocess((16, 16), mean=(0, 0, 0), std=(1, 1, 1)))


def batch(presence: list[list[int]]) -> FrameBatch:
    truth = torch.tensor(presence, dtype=torch.uint8)
    frames = torch.rand(len(truth), 3, 16, 16) * 0.5
    frames[:, 0] += (truth[:, :1] == 1).float().view(-1, 1, 1)
    return FrameBatch(frames, None, presence=truth, names=["f"] * len(truth), groups=["p"] * len(truth))


def test_the_loss_is_the_mean_over_known_labels() -> None:
    network, learning = model("nerve", "bleeding"), batch([[1, 255], [0, 1], [255, 255]])
    logits = network(learning.frames)
    known = torch.stack([logits[0, 0], logits[1, 0], logits[1, 1]])
    expected = F.binary_cross_entropy_with_logits(known, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(network.training_loss(learning), expected)
    nothing = network.training_loss(batch([[255, 255]]))
    assert nothing == 0
    nothing.backward()


def test_class_weights_weigh_the_frames_with_the_label() -> None:
    network, learning = model("nerve", "bleeding"), batch([[1, 0], [0, 1]])
    network.settings = TrainingSettings(class_weights=[3.0, 5.0])
    expected = F.binary_cross_entropy_with_logits(
        network(learning.frames), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), pos_weight=torch.tensor([3.0, 5.0])
    )
    torch.testing.assert_close(network.training_loss(learning), expected)
    network.settings = TrainingSettings(class_weights=[3.0])
    with pytest.raises(ValueError, match="1 numbers for 2 labels"):
        network.training_loss(learning)


def test_a_loss_for_masks_is_refused(tmp_path: Path) -> None:
    network = model()
    network.settings = TrainingSettings(loss="dice")
    loader = DataLoader([batch([[1], [0]])], batch_size=None)
    with pytest.raises(ValueError, match=r"a classifier trains with the loss cross_entropy, found 'dice'"):
        Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, accelerator="cpu").fit(network, loader)


def test_it_learns_chooses_its_threshold_on_validation_and_keeps_it(tmp_path: Path) -> None:
    network = model()
    network.settings = TrainingSettings(learning_rate=0.3, schedule="constant", warmup_fraction=0.0)
    loader = DataLoader([batch([[1], [0]] * 8) for _ in range(20)], batch_size=None)
    trainer = Trainer(
        max_epochs=3,
        logger=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, loader, loader)
    assert trainer.callback_metrics["val/auroc"] == 1
    assert network.settings.loss == "cross_entropy"
    threshold = network.threshold
    assert 0 < threshold < 1
    later = RedClassifier.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert later.operating_point() == network.operating_point()
    trainer.validate(network, DataLoader([batch([[1], [1], [0]])], batch_size=None), verbose=False)
    assert network.threshold == threshold


def test_a_prediction_says_what_is_in_the_frame() -> None:
    network = model("nerve", "bleeding").train()
    nn.init.zeros_(network.network.head.weight)
    network.network.head.bias.data = torch.tensor([0.0, -1.0])
    frame = np.full((20, 30, 3), 77, dtype=np.uint8)
    found = network.predict(frame)
    assert isinstance(found, PresencePrediction)
    assert found.probability == pytest.approx({"nerve": 0.5, "bleeding": 1 / (1 + np.e)})
    assert found.present == {"nerve": True, "bleeding": False}  # at the threshold counts as present
    assert network.training
    network.set_operating_point({"threshold": 0.2})
    assert [entry.present for entry in network.predict([frame, frame])] == [{"nerve": True, "bleeding": True}] * 2


def test_it_asks_for_presence() -> None:
    assert model("nerve").input_spec.target == "presence"
    assert model("nerve").input_spec.frames is None
