"""From a frame to its mask: every way to hand over a frame, every size, and what the prediction says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import nn

from spinevision import SpineDataModule
from spinevision.images import ImageError
from spinevision.labels import LabelSpace
from spinevision.models.base import SpineModel
from spinevision.models.segmenter import SpineSegmenter, decide, probability
from spinevision.models.training import TrainingSettings
from spinevision.models.unet import UNet
from spinevision.models.unet_plus_plus import UNetPlusPlus
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch

BINARY, MULTICLASS = ["nerve"], ["background", "bone", "disc"]


def frame(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def unet(labels: list[str] = BINARY, **preprocess: object) -> UNet:
    """A U-Net whose masks change from pixel to pixel."""
    torch.manual_seed(0)
    model = UNet(labels, width=4, preprocess=Preprocess(**{"size": (64, 64), **preprocess}))
    for module in model.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.constant_(module.running_var, 0.2)
    with torch.no_grad():  # every class is above the others somewhere
        model.network.head.bias -= model.eval()(model.preprocess(frame())).flatten(2).median(dim=2).values[0]
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six frames of three sequences with masks."""
    rows = ["file_name,mask_file_name,sequence_id"]
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for index in range(6):
        Image.fromarray(frame(seed=index)).save(tmp_path / "data" / "images" / f"{index}.png")
        Image.fromarray((frame(seed=index)[..., 0] > 128).astype(np.uint8)).save(tmp_path / "data" / "masks" / f"{index}.png")
        rows.append(f"images/{index}.png,masks/{index}.png,{index // 2}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"0": "background", "1": "nerve"}))
    return tmp_path / "data"


def test_every_way_to_hand_over_a_frame_gives_the_same_mask(tmp_path: Path) -> None:
    model, array = unet(), frame()
    path = tmp_path / "frame.png"
    Image.fromarray(array).save(path)
    encoded = io.BytesIO()
    Image.fromarray(array).save(encoded, "PNG")
    expected = model.predict(array)
    assert 0.1 < expected.mask.mean() < 0.9
    sources = [path, str(path), Image.fromarray(array), array, encoded.getvalue()]
    listed = model.predict([*sources, frame(30, 90)])
    for prediction in [*(model.predict(source) for source in sources), *listed[:-1], *model.predict((path,))]:
        assert np.array_equal(prediction.mask, expected.mask)
        assert np.array_equal(prediction.probability, expected.probability)
    assert listed[-1].mask.shape == (30, 90)
    assert model.predict([]) == []


@pytest.mark.parametrize("preprocess", [{}, {"resize": "stretch"}, {"resize": "none", "stride": 1}])
def test_the_data_module_feeds_the_model_what_predict_does(preprocess: dict[str, object], folder: Path) -> None:
    model, seen = unet(**preprocess), list[str]()

    class Compare(Callback):
        def on_test_batch_end(self, trainer: Trainer, pl_module: UNet, outputs: None, batch: FrameBatch, *_: object) -> None:
            placement = model.preprocess.place(48, 64)[0]
            for name, logits in zip(batch.names, model(batch.frames), strict=True):
                mask = decide(model.preprocess.restore(logits, placement)[None], model.threshold)[0].numpy()
                assert 0.1 < mask.mean() < 0.9
                assert np.array_equal(mask, model.predict(folder / name).mask)
                seen.append(name)

    data = SpineDataModule(folder, fractions=(1 / 3, 1 / 3, 1 / 3), batch_size=2, num_workers=0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[Compare()])
    trainer.test(model, data, verbose=False)
    assert len(seen) == 2


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "none"])
@pytest.mark.parametrize("labels", [BINARY, MULTICLASS], ids=["binary", "multiclass"])
def test_frames_of_any_size_get_a_mask_of_their_own_size(labels: list[str], resize: str) -> None:
    model = unet(labels, resize=resize)
    for height, width in ((33, 47), (1, 1), (7, 300), (480, 270), (1080, 1920)):
        prediction = model.predict(frame(height, width))
        assert prediction.mask.shape == (height, width)
        assert prediction.mask.dtype == np.uint8
        assert prediction.mask.max() < max(2, len(labels))
        assert prediction.probability.shape == (len(labels), height, width)
        assert prediction.probability.dtype == np.float32
        assert prediction.probability.min() >= 0
        assert prediction.probability.max() <= 1
        assert prediction.labels.names == tuple(labels)


def test_a_mask_is_what_its_probability_says() -> None:
    model = unet()
    for threshold in (0.2, 0.5, 0.8):
        model.threshold = threshold
        prediction = model.predict(frame())
        assert np.array_equal(prediction.mask, (prediction.probability[0] >= threshold).astype(np.uint8))
    multiclass = unet(MULTICLASS).predict(frame())
    assert np.array_equal(multiclass.mask, multiclass.probability.argmax(axis=0))
    assert np.allclose(multiclass.probability.sum(axis=0), 1, atol=1e-5)


def test_decisions_by_hand() -> None:
    logits = torch.tensor([-1.0, 0.0, 2.0]).view(1, 1, 1, 3)
    assert decide(logits, 0.5).tolist() == [[[0, 1, 1]]]
    assert decide(logits, 0.6).tolist() == [[[0, 0, 1]]]
    assert decide(logits, None).dtype == torch.uint8
    torch.testing.assert_close(probability(logits).flatten(), 1 / (1 + torch.exp(-logits.flatten())))
    several = torch.tensor([[1.0, 3.0], [2.0, 0.0], [0.0, 3.5]]).view(1, 3, 1, 2)
    assert decide(several, 0.9).tolist() == [[[1, 2]]]
    torch.testing.assert_close(probability(several)[0, :, 0, 0], torch.tensor([1.0, 2.0, 0.0]).exp() / sum(np.exp([1, 2, 0])))


def test_a_frames_mask_does_not_depend_on_its_neighbours_in_the_list() -> None:
    model = unet()
    together = model.predict([frame(seed=1), frame(90, 40, seed=2), frame(seed=3)])
    for prediction, alone in zip(together, (frame(seed=1), frame(90, 40, seed=2), frame(seed=3)), strict=True):
        assert np.array_equal(prediction.probability, model.predict(alone).probability)


def test_what_is_no_frame_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for source in (
        tmp_path / "text.png",
        tmp_path / "missing.png",
        b"no image",
        np.zeros((4, 4, 3)),
        np.zeros((4, 5, 3, 2), np.uint8),
        3,
    ):
        with pytest.raises((ImageError, OSError)) as error:
            unet().predict(source)  # type: ignore[call-overload]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("move", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
def test_half_precision_models_predict_nearly_the_same(move: Callable[[UNet], UNet]) -> None:
    exact = unet().predict(frame()).probability
    rounded = move(unet()).predict(frame())
    assert rounded.probability.dtype == np.float32
    assert abs(rounded.probability - exact).max() < 0.1
    assert abs(rounded.probability - exact).mean() < 0.01


def test_predict_inside_autocast_gives_finite_probabilities() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = unet().predict(frame())
    assert np.isfinite(prediction.probability).all()
    assert abs(prediction.probability - unet().predict(frame()).probability).mean() < 0.01


def test_predict_leaves_no_trace_for_training() -> None:
    model = unet()
    model.predict(frame())
    batch = FrameBatch(torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8))
    model.training_loss(batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_deep_supervision_takes_the_mean_of_the_losses_of_all_heads() -> None:
    model = UNetPlusPlus(BINARY, width=2, deep_supervision=True, prune=1).eval()
    batch = FrameBatch(torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8))
    losses = [model.loss(logits, batch.masks.long()) for logits in model.network.supervise(batch.frames).logits]
    assert len(losses) == 4
    torch.testing.assert_close(model.training_loss(batch), sum(losses) / 4)


def test_the_loss_follows_the_settings_of_the_moment() -> None:
    model = unet(MULTICLASS).eval()
    batch = FrameBatch(torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8))
    logits, target = model(batch.frames), batch.masks.long()
    model.settings = TrainingSettings(loss="cross_entropy", class_weights=[1.0, 2.0, 5.0])
    expected = nn.functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(model.training_loss(batch), expected)
    model.settings = TrainingSettings(loss="cross_entropy")
    torch.testing.assert_close(model.training_loss(batch), nn.functional.cross_entropy(logits, target))


def test_the_input_spec_is_the_models_own() -> None:
    model = unet(MULTICLASS)
    spec = model.input_spec
    assert (spec.labels, spec.preprocess, spec.frames, spec.target) == (
        LabelSpace(tuple(MULTICLASS)),
        model.preprocess,
        None,
        "mask",
    )


def test_an_architecture_must_pass_on_all_of_its_arguments() -> None:
    class Forgetful(SpineSegmenter):
        def __init__(self, labels: list[str], *, width: int = 3) -> None:
            super().__init__(labels, nn.Conv2d(3, 1, 1), None, {})

    with pytest.raises(TypeError, match=r"Forgetful must pass on all of its arguments \(\['width'\]\), it passed \[\]"):
        Forgetful(BINARY)
    with pytest.raises(TypeError, match="abstract"):
        SpineModel(BINARY, nn.Conv2d(3, 1, 1), None, {})  # type: ignore[abstract]
