"""Model folders in transformers: the same masks and probabilities as from ``predict``, loaded as strictly."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import Hub, _Handler, serve
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

import spinevision.integrations.transformers as integration
from spinevision import FUNet, ResNetClassifier, SpineCascade, SpineClassifier, SpineModel, SpineSegmenter, UNet
from spinevision.models.operating_point import log_odds

SIZES = ((97, 61), (33, 120), (64, 48))
TOOLS = ["background", "nerve", "bone"]


def frames() -> list[Image.Image]:
    """Blotches of colour, of odd sizes and one of the network's own."""
    generator = np.random.default_rng(3)
    blotches = (generator.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in SIZES)
    return [Image.fromarray(small).resize((width, height), 3) for small, (height, width) in zip(blotches, SIZES, strict=True)]


def segmenter(kind: type[SpineSegmenter], labels: list[str], **preprocess: Any) -> SpineSegmenter:
    """A small one whose masks hold every class: untrained, but balanced on the frames."""
    torch.manual_seed(2)  # with some seeds the small U-Net gives every pixel the same logit
    model = kind(labels, preprocess={"size": [64, 48], **preprocess}, **kind.SMALL).eval()  # type: ignore[arg-type, call-arg]
    model.temperature = 1.7
    with torch.no_grad():
        seen = torch.cat([next(model.answer([np.array(frame)])).logits[0].flatten(1) for frame in frames()], dim=1)
        middle = seen.median(dim=1).values
        if model.labels.binary:
            model.threshold = middle[0].sigmoid().item()
        else:
            model.network.get_parameter("head.bias").sub_(middle * model.temperature)
    return model


def classifier(labels: list[str]) -> SpineClassifier:
    model = ResNetClassifier(labels, preprocess={"size": [40, 56]}, **ResNetClassifier.SMALL).eval()
    model.temperature = 0.6
    return model


def cascade() -> SpineCascade:
    """The gate lets one of the first two frames through; a shut gate's logits would be above the threshold if they were divided."""
    gate, second = classifier(["presence"]), segmenter(UNet, ["nerve"])
    gate.threshold = sum(gate.predict(frame).probability["presence"] for frame in frames()[:2]) / 2
    assert second.threshold is not None
    with torch.no_grad():
        second.network.get_parameter("head.bias").add_(log_odds(0.02) * 9 - log_odds(second.threshold) * second.temperature)
    second.set_operating_point({"threshold": 0.02, "temperature": 9.0})
    return SpineCascade.from_parts(gate, second)


MODELS: dict[str, Callable[[], SpineModel]] = {
    "binary": lambda: segmenter(UNet, ["nerve"]),
    "multiclass": lambda: segmenter(UNet, TOOLS),
    "stretched": lambda: segmenter(UNet, ["nerve"], resize="stretch"),
    "unresized": lambda: segmenter(UNet, TOOLS, resize="none", stride=16),
    "clip": lambda: segmenter(FUNet, ["nerve"]),
    "cascade": cascade,
    "presence": lambda: classifier(["presence"]),
    "tissues": lambda: classifier(["nerve", "bone", "disc"]),
}


def save(model: SpineModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    complete(folder)
    return folder


def complete(folder: Path) -> None:
    """A folder that was written before there was a file for image processors."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        path.write_text('{"image_processor_type": "SpineImageProcessor"}\n')


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(make(), root / name) for name, make in MODELS.items()}


def both(folder: Path) -> tuple[Any, Any]:
    """The model and its image processor as transformers loads them."""
    return AutoModelForSemanticSegmentation.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> Callable[[str], Any]:
    """The pipeline of a folder, loaded once; tests only use it."""
    return functools.cache(lambda name: pipeline("image-segmentation", model=str(folders[name])))


def painted(segments: list[dict[str, Any]], model: SpineSegmenter) -> np.ndarray:
    """The mask that a pipeline's segments make together; every pixel must belong to one of them."""
    ids = {name: index for index, name in model.labels.id2label.items()}
    pictures = [(ids[segment["label"]], np.array(segment["mask"])) for segment in segments]
    assert all(set(np.unique(picture)) <= {0, 255} for _, picture in pictures)
    assert (sum((picture == 255).astype(int) for _, picture in pictures) == 1).all()
    return sum((index * (picture == 255) for index, picture in pictures), np.zeros(pictures[0][1].shape, int))


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", ["binary", "multiclass", "stretched", "unresized", "clip"])
def test_a_pipeline_gives_the_masks_of_predict_pixel_for_pixel(folders, pipes, name):
    model, pipe = SpineSegmenter.from_pretrained(folders[name]), pipes(name)
    seen = set()
    for frame in frames():
        expected = model.predict(frame).mask
        assert np.array_equal(painted(pipe(frame), model), expected)
        seen |= set(np.unique(expected))
    assert seen == set(model.labels.id2label)  # else the comparison would say little


def test_a_cascade_in_a_pipeline_is_gated_as_in_predict(folders, pipes):
    model, pipe = SpineCascade.from_pretrained(folders["cascade"]), pipes("cascade")
    shut, opened = sorted(frames()[:2], key=lambda frame: model.predict(frame).presence)
    assert 0 < model.predict(opened).mask.mean() < 1 and not model.predict(shut).mask.any()
    for frame in frames():
        assert np.array_equal(painted(pipe(frame), model), model.predict(frame).mask)
    processor, network = pipe.image_processor, pipe.model
    with torch.no_grad():
        presence = network(**processor(shut, return_tensors="pt")).presence
    assert presence.item() == model.predict(shut).presence
    with pytest.raises(ValueError, match="a cascade needs gate_pixel_values"):
        network(processor(shut)["pixel_values"])


@pytest.mark.parametrize("name", ["multiclass", "cascade"])
def test_frames_in_a_batch_get_their_own_masks(folders, pipes, name):
    model, pipe = SpineSegmenter.from_pretrained(folders[name]), pipes(name)
    for frame, segments in zip(frames(), pipe(frames(), batch_size=2), strict=True):
        assert (painted(segments, model) != model.predict(frame).mask).mean() < 1e-3


def test_a_model_of_one_class_has_two_logits_whose_highest_is_its_decision(folders):
    model = SpineSegmenter.from_pretrained(folders["binary"])
    wrapped, processor = (
        kind.from_pretrained(folders["binary"]) for kind in (AutoModelForSemanticSegmentation, AutoImageProcessor)
    )
    assert not wrapped.training and wrapped.config.id2label == {0: "background", 1: "nerve"}
    values = processor(frames()[0], return_tensors="pt")
    with torch.no_grad():
        outputs, raw = wrapped(**values), model(values["pixel_values"])
    assert torch.equal(values["pixel_values"], model.preprocess(np.array(frames()[0])))
    assert torch.equal(outputs.logits[:, 0], torch.zeros(1, 64, 48))
    torch.testing.assert_close(outputs.logits[:, 1], raw[:, 0] / 1.7 - log_odds(model.threshold))
    at_network_size = processor.post_process_semantic_segmentation(outputs)[0]
    assert torch.equal(at_network_size, outputs.logits[0].argmax(dim=0))


def test_the_threshold_and_the_temperature_of_the_folder_count(folders, tmp_path):
    model = SpineSegmenter.from_pretrained(folders["binary"])
    low, high = (float(value) for value in np.quantile(model.predict(frames()[0]).probability, (0.3, 0.7)))
    same_as_low = 1.7 * log_odds(low) / log_odds(high)  # the temperature at which the high threshold cuts where the low one did
    shares = []
    for threshold, temperature in ((low, 1.7), (high, 1.7), (high, same_as_low)):
        model.set_operating_point({"threshold": threshold, "temperature": temperature})
        pipe = pipeline("image-segmentation", model=str(save(model, tmp_path / f"{threshold}-{temperature}")))
        shares.append(painted(pipe(frames()[0]), model).mean())
    assert shares == pytest.approx([0.7, 0.3, 0.7], abs=0.02)


def test_half_precision_is_that_of_predict(folders, tmp_path):
    model = SpineSegmenter.from_pretrained(folders["binary"], dtype=torch.bfloat16)
    stored = pipeline("image-segmentation", model=str(save(model, tmp_path / "half")))
    asked = pipeline("image-segmentation", model=str(folders["binary"]), dtype="bfloat16")
    for pipe in (stored, asked):
        assert pipe.model.dtype == pipe.model.config.dtype == torch.bfloat16
        assert np.array_equal(painted(pipe(frames()[0]), model), model.predict(frames()[0]).mask)


# ------------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("name", ["presence", "tissues"])
def test_a_classifier_gives_each_label_its_own_probability(folders, name):
    model, pipe = SpineClassifier.from_pretrained(folders[name]), pipeline("image-classification", model=str(folders[name]))
    for frame in frames():
        found = pipe(frame)
        assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(model.predict(frame).probability, abs=1e-6)
        assert found == sorted(found, key=lambda entry: -entry["score"])
    assert pipe.model.config.problem_type == "multi_label_classification"


# ---------------------------------------------------------------------------------------------------------- strictness


@pytest.mark.parametrize(
    ("name", "auto", "options", "said"),
    [
        ("tissues", AutoModelForSemanticSegmentation, {}, "which is no SpineSegmenter"),
        ("binary", AutoModelForImageClassification, {}, "which is no SpineClassifier"),
        ("binary", AutoModelForSemanticSegmentation, {"num_labels": 5}, "num_labels has no meaning"),
        ("binary", AutoModelForSemanticSegmentation, {"threshold": 0.1}, "threshold has no meaning"),
        ("binary", AutoModelForSemanticSegmentation, {"device_map": "auto"}, "device_map has no meaning"),
        ("binary", AutoModelForSemanticSegmentation, {"dtype": "int8"}, "dtype must be one of"),
        ("binary", AutoModelForSemanticSegmentation, {"dtype": "cuda"}, "must be the name of a type"),
        ("binary", AutoModelForSemanticSegmentation, {"subfolder": "../binary"}, "subfolder must be a plain path"),
        ("binary", AutoImageProcessor, {"do_resize": False}, "do_resize has no meaning"),
    ],
)
def test_what_would_not_be_the_saved_model_is_refused(folders, name, auto, options, said):
    with pytest.raises((ValueError, OSError)) as refused:
        auto.from_pretrained(folders[name], **options)
    assert said in str(refused.value)


def test_a_folder_is_checked_as_by_our_own_loader(folders, tmp_path):
    folder = shutil.copytree(folders["binary"], tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] + 0.1}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="differ"):
        AutoModelForSemanticSegmentation.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"tresholds": 0.4}, "unknown key 'tresholds'"),
        ({"auto_map": {}}, "unknown key"),
        ({"labels": []}, "labels"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        for auto in (AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation):
            with pytest.raises(ValueError, match=said):
                auto.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preprocess": {}}, "preprocess lacks"),
        ({"preprocess": {"size": "large"}}, "preprocess lacks"),
        ({"arguments": {}}, "classifier.preprocess must be a dictionary, found None"),
        ({"arguments": {"classifier": [1]}}, "classifier.preprocess must be a dictionary, found None"),
        ({"arguments": {"classifier": {"preprocess": {"sise": 3}}}}, "classifier.preprocess has the unknown key 'sise'"),
        ({"architecture": "os", "architectures": ["os"]}, "os"),
    ],
)
def test_a_processor_reads_the_configuration_as_untrusted_input(folders, tmp_path, change, said):
    folder = shutil.copytree(folders["cascade"], tmp_path / "other")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(ValueError) as refused:
        AutoImageProcessor.from_pretrained(folder)
    assert said in str(refused.value)


def test_a_configuration_of_another_model_is_refused_and_makes_no_fresh_one(folders):
    config = AutoConfig.from_pretrained(folders["multiclass"])
    with pytest.raises(ValueError, match="config has another labels than"):
        AutoModelForSemanticSegmentation.from_pretrained(folders["binary"], config=config)
    with pytest.raises(ValueError, match=r"spinevision\.UNet\(labels=\.\.\.\)"):
        AutoModelForSemanticSegmentation.from_config(config)


def test_the_processor_refuses_what_it_cannot_do(folders):
    wrapped, processor = (
        kind.from_pretrained(folders["unresized"]) for kind in (AutoModelForSemanticSegmentation, AutoImageProcessor)
    )
    with torch.no_grad():
        outputs = wrapped(**processor(frames()[0]))
    for call, said in (
        (lambda: processor(frames()), "different sizes"),
        (lambda: processor(torch.zeros(3, 8, 8)), "not a path, encoded bytes"),
        (lambda: processor(frames()[0], return_tensors="np"), 'must be "pt"'),
        (lambda: processor.post_process_semantic_segmentation({"logits": outputs.logits}), "no network_logits"),
        (lambda: processor.post_process_semantic_segmentation(outputs, [(97, 61), (97, 61)]), "2 target_sizes for 1 frames"),
        (lambda: processor.post_process_semantic_segmentation(outputs, [(400, 61)]), "not what these outputs were made from"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


# -------------------------------------------------------------------------------------------------------------- saving


def test_saving_writes_our_model_folder(folders, pipes, tmp_path):
    pipe = pipes("cascade")
    pipe.save_pretrained(tmp_path / "again")
    read = [json.loads((folder / "config.json").read_text()) for folder in (folders["cascade"], tmp_path / "again")]
    assert read[0] == read[1]
    one, two = (SpineCascade.from_pretrained(folder) for folder in (folders["cascade"], tmp_path / "again"))
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in two.state_dict().items())
    again = pipeline("image-segmentation", model=str(tmp_path / "again"))
    assert np.array_equal(painted(again(frames()[0]), one), one.predict(frames()[0]).mask)
    pipe.model.config.save_pretrained(tmp_path / "config")
    assert json.loads((tmp_path / "config" / "config.json").read_text()) == read[0]
    with pytest.raises(ValueError, match=r"push with model\.spine\.push_to_hub\('org/m'"):
        pipe.model.push_to_hub("org/m")


def test_a_deep_copy_computes_the_same(pipes):
    wrapped, values = pipes("cascade").model, pipes("cascade").image_processor(frames()[:1])
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(wrapped)(**values).logits, wrapped(**values).logits)


# ------------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that both libraries ask, with nothing in the cache."""
    from huggingface_hub import constants
    from transformers.utils import hub as asking

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", True)  # else each answer waits 40 ms for an acknowledgement
    with serve(tmp_path / "server", token="hf_owner", xet=False) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(asking, "_hf_api", None, raising=False)
        yield server


@pytest.mark.slow
@pytest.mark.network
def test_a_private_repository_loads_by_its_id_and_later_without_the_hub(hub, folders, tmp_path):
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token="hf_owner")
    api.create_repo("org/m", private=True)
    for name, tag in (("binary", "v1"), ("stretched", "v2")):
        api.upload_folder(repo_id="org/m", folder_path=folders[name])
        api.create_tag("org/m", tag=tag)
    local = {"cache_dir": str(tmp_path / "cache")}
    for name, revision in (("binary", "v1"), ("stretched", None)):
        pipe = pipeline("image-segmentation", model="org/m", revision=revision, token="hf_owner", model_kwargs=dict(local))
        model = SpineSegmenter.from_pretrained(folders[name])
        assert np.array_equal(painted(pipe(frames()[0]), model), model.predict(frames()[0]).mask)
        assert pipe.model.spine.hub_info.commit == api.model_info("org/m", revision=revision).sha
    with pytest.raises(OSError, match="org/m"):
        AutoModelForSemanticSegmentation.from_pretrained("org/m", token="hf_wrong", cache_dir=tmp_path / "empty")
    asked = len(hub.requests())
    for auto in (AutoModelForSemanticSegmentation, AutoImageProcessor):
        auto.from_pretrained("org/m", revision="v1", local_files_only=True, **local)
    assert len(hub.requests()) == asked


def test_names_that_transformers_knows_are_not_taken():
    import transformers

    names = [integration.SpineConfig, integration.SpineImageProcessor, integration.SpineForSemanticSegmentation]
    assert not [name.__name__ for name in names if hasattr(transformers, name.__name__)]
