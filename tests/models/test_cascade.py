"""The cascade of a classifier and a segmenter: gate, calibration, and one folder for both."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spinevision import FUNet, Preprocess, ResNetClassifier, SpineCascade, SpineModel, SpineSegmenter, TrainingSettings, UNet
from spinevision.data.datamodule import SpineDataModule
from spinevision.hub.config import ModelFolderError
from spinevision.models.pretrained import EncoderSource


def classifier(label: str = "presence", brightness: float = 8.0) -> ResNetClassifier:
    """Says yes to bright frames: its logit is the mean of the last features, which only grow with the input's size."""
    model = ResNetClassifier([label], preprocess=Preprocess((32, 32), mean=(0, 0, 0), std=(1, 1, 1)), **ResNetClassifier.SMALL)
    with torch.no_grad():
        model.eval()
        features = 1e-6 + (model.network(torch.ones(1, 3, 32, 32)) - model.network.fc.bias).abs()
        model.network.fc.weight.copy_(model.network.fc.weight * brightness / features)
    return model


def cascade(gate: float | None = None, **parts: SpineModel) -> SpineCascade:
    segmenter = parts.get("segmenter") or UNet(["nerve"], width=4, preprocess=Preprocess((48, 32)))
    return SpineCascade.from_parts(parts.get("classifier") or classifier(), segmenter, gate=gate)


def noise(height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_open_gate_gives_the_segmenters_mask_and_a_shut_one_none() -> None:
    segmenter = UNet(["nerve"], width=4, preprocess=Preprocess((48, 32)))
    segmenter.set_operating_point({"threshold": 0.25, "temperature": 2.5})
    first, frame = classifier(), noise()
    first.set_operating_point({"threshold": 0.5, "temperature": 1.5})
    expected, chance = segmenter.predict(frame), first.predict(frame).probability["presence"]
    opened = cascade(chance, classifier=first, segmenter=segmenter).predict(frame)  # at the gate counts as present
    assert opened.presence == pytest.approx(chance)
    assert (opened.mask == expected.mask).all()
    np.testing.assert_array_equal(opened.probability, expected.probability)
    shut = cascade(np.nextafter(chance, 1), classifier=first, segmenter=segmenter).predict(frame)
    assert shut.presence == opened.presence
    assert not shut.mask.any()
    assert shut.probability.max() < 1e-12
    assert shut.area_fraction == {"nerve": 0.0}


def test_the_segmenter_is_not_asked_where_the_gate_is_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade(1.0)
    monkeypatch.setattr(model.network.segmenter, "forward", lambda *_: pytest.fail("asked"))
    assert not model.predict(noise()).mask.any()


def test_several_classes_shut_off_are_background() -> None:
    segmenter = UNet(["background", "bone", "disc"], width=4)
    prediction = cascade(1.0, segmenter=segmenter).predict(noise())
    assert not prediction.mask.any()
    assert prediction.probability[0].min() > 1 - 1e-6


@pytest.mark.slow
def test_a_clip_is_gated_frame_by_frame() -> None:
    segmenter = FUNet(["nerve"], preprocess=Preprocess((32, 32)), **FUNet.SMALL)
    frames = [noise(), noise() // 8, noise() // 2]
    first = classifier()
    chances = [entry.probability["presence"] for entry in first.predict(frames)]
    gate = sorted(chances)[1]
    found = cascade(gate, classifier=first, segmenter=segmenter).predict(frames)
    plain = segmenter.predict(frames)
    for chance, gated, whole in zip(chances, found, plain, strict=True):
        expected = whole.probability if chance >= gate else np.zeros_like(whole.probability)
        np.testing.assert_allclose(gated.probability, expected, atol=1e-6)


def test_calibration_lets_the_stated_share_through() -> None:
    model = cascade()
    chance, present = torch.rand(200), torch.randint(0, 2, (200,))
    model.calibrate(chance, present, 0.9)
    let_through = (chance[present == 1] >= model.gate).float().mean()
    assert 0.9 <= let_through < 0.9 + 2 / present.sum()
    assert model.arguments["sensitivity"] == 0.9


def test_one_folder_holds_both(tmp_path: Path) -> None:
    model = cascade()
    model.calibrate(torch.tensor([0.3125, 0.7]), torch.tensor([1, 1]), 1.0)
    point = {"threshold": 0.375, "temperature": 2.5, "threshold_rule": "the best"}
    model.set_operating_point(point)
    model.save_pretrained(tmp_path / "model")
    loaded = SpineSegmenter.from_pretrained(tmp_path / "model")
    assert type(loaded) is SpineCascade
    assert (loaded.gate, loaded.operating_point(), loaded.arguments) == (0.3125, point, model.arguments)
    frame = noise()
    before, after = model.predict(frame), loaded.predict(frame)
    assert before.presence == after.presence
    np.testing.assert_array_equal(before.probability, after.probability)
    assert "pipeline_tag: image-segmentation" in (tmp_path / "model" / "README.md").read_text()


def test_the_stored_outputs_cover_the_classifier(tmp_path: Path) -> None:
    cascade().save_pretrained(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["classifier.fc.bias"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFolderError, match="does not give the outputs stored with it"):
        SpineCascade.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "UNet"}, "a cascade is a classifier and a segmenter, found UNet and UNet"),
        ({"architecture": "ResNet"}, "did you mean"),
        ({"labels": ["a", "b"]}, "a gate has one"),
        ({"extra": 1}, "unknown key"),
        ({"arguments": {"depth": 19, "width": 4}}, "depth must be"),
    ],
)
def test_a_folder_whose_parts_cannot_be_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    cascade().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["arguments"]["classifier"] |= change
    if change.get("architecture") == "UNet":
        config["arguments"]["classifier"]["arguments"] = {"width": 4}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=said):
        SpineModel.from_pretrained(tmp_path / "model")


def test_parts_in_the_wrong_order_or_for_another_class_are_refused() -> None:
    with pytest.raises(ValueError, match="found UNet and ResNetClassifier"):
        SpineCascade.from_parts(UNet(["nerve"], width=4), classifier())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the classifier's labels are bone"):
        cascade(classifier=classifier("bone"))
    assert cascade(classifier=classifier("nerve")).labels.names == ("nerve",)


def test_other_labels_are_refused(tmp_path: Path) -> None:
    cascade().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="are not the segmenter's"):
        SpineModel.from_pretrained(tmp_path / "model", labels=["bleeding"])


def test_it_is_not_trained_as_a_whole(phantom_folder: Path, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, accelerator="cpu", enable_checkpointing=False)
    with pytest.raises(ValueError, match="a cascade is not trained as a whole"):
        trainer.fit(cascade(), SpineDataModule(phantom_folder, num_workers=0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_is_a_cascade_of_its_own(copied: Callable[[SpineCascade], SpineCascade]) -> None:
    model, frame = cascade(0.25), noise()
    expected = model.predict(frame)
    copy_ = copied(model)
    assert copy_.classifier.network is copy_.network.classifier
    assert copy_.segmenter.network is copy_.network.segmenter
    assert copy_.gate == 0.25
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = copy_.predict(frame)
    assert found.presence == expected.presence
    np.testing.assert_array_equal(found.probability, expected.probability)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_stays_near_and_loads_as_it_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    model, frame = cascade(0.0), noise()
    whole = model.predict(frame)
    half = model.to(dtype).predict(frame)
    assert half.presence == pytest.approx(whole.presence, abs=0.05)
    np.testing.assert_allclose(half.probability, whole.probability, atol=0.05)
    model.save_pretrained(tmp_path / "model")
    loaded = SpineCascade.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    again = loaded.predict(frame)
    assert again.presence == half.presence
    np.testing.assert_array_equal(again.probability, half.probability)


def test_both_parts_go_to_a_device_together(tmp_path: Path) -> None:
    """The "meta" device stands for a graphics card: what is left behind shows."""
    cascade().save_pretrained(tmp_path / "model")
    for model in (cascade(), SpineCascade.from_pretrained(tmp_path / "model")):
        model.to("meta")
        for part in (model, *model.parts.values()):
            tensors = [*part.network.state_dict().values(), *part.preprocess.buffers(), *model.gate_preprocess.buffers()]
            assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_the_parts_decide_as_the_cascade_does(tmp_path: Path) -> None:
    segmenter = UNet(["nerve"], width=4, preprocess=Preprocess((48, 32)))
    segmenter.set_operating_point({"threshold": 0.125})
    model = cascade(segmenter=segmenter)
    model.calibrate(torch.tensor([0.375]), torch.tensor([1]), 1.0)
    model.save_pretrained(tmp_path / "model")
    for found in (model, SpineCascade.from_pretrained(tmp_path / "model")):
        assert (found.classifier.threshold, found.segmenter.threshold) == (0.375, 0.125)


def test_both_parts_keep_their_calibration(tmp_path: Path) -> None:
    first, segmenter, frame = classifier(), UNet(["nerve"], width=4, preprocess=Preprocess((48, 32))), noise()
    first.set_operating_point({"threshold": 0.5, "temperature": 3.0})
    segmenter.set_operating_point({"threshold": 0.5, "temperature": 0.5})
    chance, expected = first.predict(frame).probability["presence"], segmenter.predict(frame)
    model = cascade(0.0, classifier=first, segmenter=segmenter)
    model.save_pretrained(tmp_path / "model")
    for found in (model, SpineCascade.from_pretrained(tmp_path / "model")):
        assert found.arguments["presence_temperature"] == found.classifier.temperature == 3.0
        assert found.temperature == found.segmenter.temperature == 0.5
        prediction = found.predict(frame)
        assert prediction.presence == chance
        np.testing.assert_array_equal(prediction.probability, expected.probability)


@pytest.mark.parametrize("temperature", [0.0, 21.0, float("nan")])
def test_a_presence_temperature_that_cannot_be_is_refused(temperature: float) -> None:
    model = cascade()
    with pytest.raises(ValueError, match=r"presence_temperature must be from 0.05 to 20"):
        SpineCascade(["nerve"], **(model.arguments | {"presence_temperature": temperature}))


@pytest.mark.slow
def test_where_the_encoders_of_both_came_from_is_kept(tmp_path: Path) -> None:
    first, second = classifier(), FUNet(["nerve"], preprocess=Preprocess((32, 32)), **FUNet.SMALL)
    first.encoder_source = EncoderSource("timm/resnet18.a1_in1k", "a" * 40, "apache-2.0")
    model = cascade(classifier=first, segmenter=second)
    model.save_pretrained(tmp_path / "one")
    second.encoder_source = EncoderSource("weights.safetensors", None, None)
    cascade(classifier=first, segmenter=second).save_pretrained(tmp_path / "both")
    for name, expected in (("one", None), ("both", second.encoder_source)):
        loaded = SpineCascade.from_pretrained(tmp_path / name)
        assert loaded.classifier.encoder_source == first.encoder_source
        assert loaded.segmenter.encoder_source == expected
    assert "apache-2.0" in (tmp_path / "both" / "config.json").read_text()


def test_a_segmenter_of_stills_stays_one(tmp_path: Path) -> None:
    segmenter = FUNet(["nerve"], preprocess=Preprocess((32, 32)), **FUNet.SMALL)
    segmenter.settings = TrainingSettings(stills=True)
    model = cascade(0.0, segmenter=segmenter)
    model.save_pretrained(tmp_path / "model")
    for found in (model, SpineCascade.from_pretrained(tmp_path / "model")):
        assert found.window_length == 1
        np.testing.assert_array_equal(found.predict(noise()).probability, segmenter.predict(noise()).probability)


def test_called_as_a_function_it_is_the_segmenter() -> None:
    model, frames = cascade(1.0), torch.randn(2, 3, 40, 30)
    with torch.no_grad():
        torch.testing.assert_close(model(frames), model.segmenter(frames))
