"""Exported files: every architecture in every format, what they hold, and what is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from network_checks import settle_on, smooth_frames

import spinevision.inference.export.write as export_module
from spinevision import SpineCascade
from spinevision.inference.export import check as checks
from spinevision.inference.export.deployed import FrameIn
from spinevision.inference.export.engines import EngineError
from spinevision.inference.export.exported import KEY, Description, ExportedClassifier, ExportedSegmenter, load_exported
from spinevision.inference.export.write import export
from spinevision.models import find_architecture, list_architectures
from spinevision.models.base import SpineModel
from spinevision.preprocess import Preprocess, Resize

ENDINGS = [".onnx", ".pt2", ".xml"]
every_ending = pytest.mark.parametrize("ending", ENDINGS)

TABLES = ("TransUNet", "SwinUNet", "FUNet", "PNSNet")
"""What cannot be had for frames of any size without resizing."""

ENOUGH = ("UNet", "FUNet", "SegFormer", "MobileNetV3Classifier")
"""Those whose operations stand for all."""
WITHIN = ("AttentionUNet", "R2UNet")
"""Every operation of theirs is one of AR2UNet's."""

LARGE = checks.CHECKED
assert (1080, 1920) in LARGE


def small(name: str, labels: tuple[str, ...] = ("nerve",), policy: Resize = "letterbox", **arguments: object) -> SpineModel:
    kind = find_architecture(name)
    model = kind(labels, preprocess=Preprocess((64, 96), policy), **{**kind.SMALL, **arguments})
    if model.clip_length:
        return outspoken(settle_on(model, smooth_frames(4, model.clip_length, 3, 64, 96)))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        frames = smooth_frames(8, 3, 64, 96)
        model.train()(frames + 0.5 * torch.randn_like(frames))  # its statistics become those of frames, so that no signal dies
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.7, 1.3)
    return outspoken(model.eval())


def outspoken(model: SpineModel) -> SpineModel:
    """Calibrated so that probabilities lie on both sides of the threshold and far from each other, where no fault can hide."""
    with torch.inference_mode():
        frames = scenes(model, 64, 96)
        if model.input_spec.target == "presence":
            logits = torch.cat([model(model.preprocess(frame)) for frame in (*frames, 255 - frames[0])])
        else:
            logits = torch.cat([answer.logits for answer in model.answer(frames)])
    temperature = float(logits.std()) / 2
    one = len(model.labels) == 1 or model.input_spec.target == "presence"
    threshold = (logits.median() / temperature).sigmoid().item() if one else None
    model.set_operating_point({"threshold": threshold, "temperature": temperature})
    return model


def scenes(model: SpineModel, height: int, width: int) -> list[np.ndarray]:
    frames = smooth_frames(model.input_spec.frames or 1, 3, height, width).mul(1.5).sigmoid() * 255
    return [*frames.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()]


def check(model: SpineModel, path: Path, height: int, width: int) -> None:
    frames = scenes(model, height, width)
    for told, wanted in zip(load_exported(path).predict(frames), model.predict(frames), strict=True):
        if model.input_spec.target == "presence":
            odds, right = (torch.tensor([*answer.probability.values()]).logit() for answer in (told, wanted))
            torch.testing.assert_close(odds, right, rtol=1e-2, atol=0.02)
            continue
        assert wanted.probability.std() > 2e-3
        np.testing.assert_allclose(told.probability, wanted.probability, atol=1e-3)
        assert told.mask.dtype == np.uint8
        assert (told.mask != wanted.mask).mean() < 1e-2


@pytest.fixture(autouse=True)
def _extras() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name)


@pytest.fixture(autouse=True, scope="module")
def small_frames() -> Iterator[None]:
    """Files are compared with their models on small frames: on a large one it is the resizing that takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "CHECKED", ((33, 47), (2, 3), (90, 160), (130, 60)))
        yield


@pytest.fixture(scope="module")
def model() -> SpineModel:
    torch.manual_seed(2)
    return small("UNet")


@pytest.fixture(scope="module")
def onnx_file(model: SpineModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(model, path, license="apache-2.0")
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    return path


@pytest.mark.slow
def test_an_onnx_file_needs_nothing_but_its_engine(model: SpineModel, onnx_file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file)
    frame = scenes(model, 71, 50)[0]
    mask, probability = session.run(["mask", "probability"], {"frame": frame})
    wanted = model.predict(frame)
    np.testing.assert_allclose(probability, wanted.probability, atol=1e-4)
    assert mask.dtype == np.uint8
    assert (mask != wanted.mask).mean() < 1e-3
    assert 0 < mask.mean() < 1
    assert b"/inference/deployed.py" not in onnx_file.read_bytes()  # nor where on this machine the code lies


@pytest.mark.slow
def test_the_file_says_what_it_is(model: SpineModel, onnx_file: Path) -> None:
    told = load_exported(onnx_file).description
    assert (told.architecture, told.labels) == ("UNet", ["nerve"])
    assert (told.threshold, told.temperature) == (model.threshold, model.temperature)
    assert (told.frames, told.size, told.gate, told.license) == (None, None, None, "apache-2.0")
    assert told.preprocess == model.preprocess.config()
    assert told.versions["torch"].startswith(torch.__version__.split("+")[0])


def test_an_exported_segmenter_predicts_like_a_model(model: SpineModel, onnx_file: Path, tmp_path: Path) -> None:
    exported = load_exported(onnx_file, threads=1)
    assert isinstance(exported, ExportedSegmenter)
    frames = [*scenes(model, 40, 50), *scenes(model, 61, 20)]
    told = exported.predict(frames)
    assert [answer.mask.shape for answer in told] == [(40, 50), (61, 20)]
    assert told[0].labels == model.labels
    assert told[0].presence is None
    assert told[1].frame is frames[1]
    np.testing.assert_array_equal(exported.predict(frames[1]).probability, told[1].probability)
    with pytest.raises(ValueError, match="frame"):
        exported.predict(np.zeros((4, 4)))


@pytest.mark.slow
def test_a_classifier_in_torch_export(tmp_path: Path) -> None:
    model = small("ResNetClassifier", ("blood", "bone"))
    export(model, tmp_path / "model.pt2", size=(33, 47))
    exported = load_exported(tmp_path / "model.pt2")
    assert isinstance(exported, ExportedClassifier)
    frame = scenes(model, 33, 47)[0]
    told, wanted = exported.predict(frame), model.predict(frame)
    assert told.probability == pytest.approx(wanted.probability, abs=1e-5)
    assert (told.present, told.threshold) == (wanted.present, wanted.threshold)
    assert exported.predict([frame, frame])[1].present == told.present


@pytest.mark.slow
def test_a_file_of_a_clip_model_takes_lists_of_at_least_a_clip(tmp_path: Path) -> None:
    model = small("FUNet", policy="none", frames=2)
    assert export(model, tmp_path / "model.pt2", size=(40, 56)).frames == 2
    exported = load_exported(tmp_path / "model.pt2")
    clip = scenes(model, 40, 56)
    told, wanted = exported.predict([*clip, clip[0]]), model.predict([*clip, clip[0]])
    assert len(told) == 3
    for found, right in zip(told, wanted, strict=True):
        np.testing.assert_allclose(found.probability, right.probability, atol=1e-3)
    with pytest.raises(ValueError, match="clips of 2 frames, found 1; give a list of at least as many"):
        exported.predict(clip[0])


@pytest.mark.slow
def test_half_precision_weights_are_written_in_full_and_a_fixed_size_takes_that_alone(tmp_path: Path) -> None:
    model = small("UNet").to(torch.bfloat16)
    assert export(model, tmp_path / "model.pt2", size=(40, 56)).size == [40, 56]
    assert next(model.network.parameters()).dtype == torch.bfloat16
    check(model.float(), tmp_path / "model.pt2", 40, 56)
    with pytest.raises(ValueError, match="frames of 40x56 pixels alone, found 56x40"):
        load_exported(tmp_path / "model.pt2").predict(scenes(model, 56, 40))


@pytest.mark.slow
def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_left(
    model: SpineModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FrameIn.forward

    def darker(self: FrameIn, frames: torch.Tensor) -> object:
        values, lying = honest(self, frames)
        return values - 0.1, lying

    (tmp_path / "model.pt2").write_text("what was here before")
    monkeypatch.setattr(FrameIn, "forward", darker)
    with pytest.raises(
        EngineError, match=r"does not answer as the model does on \d+x\d+ pixels: a probability is .* nothing was written"
    ):
        export(model, tmp_path / "model.pt2", size=(32, 40))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["what was here before"]


@pytest.mark.slow
def test_decisions_are_compared_too(model: SpineModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = export_module.FrameToMask
    honest = module.__init__

    def lenient(self: torch.nn.Module, given: SpineModel, size: object, doubles: bool) -> None:
        honest(self, given, size, doubles)
        self.threshold = given.threshold / 2

    monkeypatch.setattr(module, "__init__", lenient)
    with pytest.raises(EngineError, match="decisions differ far from the threshold"):
        export(model, tmp_path / "model.pt2", size=(32, 40))
    assert not list(tmp_path.iterdir())


def test_frames_of_any_size_without_resizing_need_a_network_for_them(tmp_path: Path) -> None:
    for name in TABLES:
        with pytest.raises(EngineError, match=r"has windows or tables of positions, .* name the size of your frames with --size"):
            export(small(name, policy="none"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_names_and_sizes_are_refused(model: SpineModel, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ends in .onnx, .pt2, .xml, found model.engine"):
        export(model, tmp_path / "model.engine")
    for size in ((0, 5), (5,), (5, 20000)):
        with pytest.raises(EngineError, match="size must be a height and a width from 1 to 16384 pixels"):
            export(model, tmp_path / "model.onnx", size=size)


def test_what_is_no_exported_file_is_refused_in_one_sentence(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    stranger = onnx.load(onnx_file)
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "stranger.onnx")
    with zipfile.ZipFile(tmp_path / "stranger.pt2", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'exit 1'\ntR.")
    (tmp_path / "text.pt2").write_text("text")
    (tmp_path / "lonely.xml").write_text("<net/>")
    for name, word in {
        "stranger.onnx": "holds no description by spinevision",
        "stranger.pt2": "holds no description by spinevision",
        "text.pt2": "is not a file of torch.export",
        "model.h5": "its name must end in .onnx, .pt2, .xml",
    }.items():
        with pytest.raises(EngineError, match=word) as refusal:
            load_exported(tmp_path / name)
        assert "\n" not in str(refusal.value)
    with pytest.raises(FileNotFoundError, match=r"the weights of .* are not beside it; put lonely.bin there"):
        load_exported(tmp_path / "lonely.xml")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(tmp_path / "none.onnx")


def test_a_description_is_read_strictly(onnx_file: Path) -> None:
    told = load_exported(onnx_file).description
    assert Description.parse(told.text(), "file") == told
    for change in ({"surprise": 1}, {"target": "both"}, {"labels": []}):
        with pytest.raises(EngineError, match="the description inside file cannot be read"):
            Description.parse(json.dumps({**json.loads(told.text()), **change}), "file")
    with pytest.raises(EngineError, match="written in format 99, this version of spinevision reads 1"):
        Description.parse(replace(told, format_version=99).text(), "file")
    with pytest.raises(EngineError, match="cannot be read"):
        Description.parse("[]", "file")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in ENOUGH else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in list_architectures()
        if name not in WITHIN
    ],
)
def test_every_architecture_becomes_an_onnx_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "UNet":
        monkeypatch.setattr(checks, "CHECKED", LARGE)
    model = small(name, **({"frames": 2} if name in ("FUNet", "PNSNet") else {}))
    told = export(model, tmp_path / "model.onnx")
    assert (told.architecture, told.least_side) == (name, 1)
    check(model, tmp_path / "model.onnx", 50, 77)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SegFormer", pytest.param("SwinUNet", marks=pytest.mark.exhaustive)])
def test_openvino_takes_attention_and_windows(name: str, tmp_path: Path) -> None:
    model = small(name)
    export(model, tmp_path / "model.xml")
    check(model, tmp_path / "model.xml", 50, 77)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["UNet", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("PPLiteSeg", "SwinUNet", "ResNetClassifier"))]
)
def test_without_resizing_frames_of_any_size_or_of_one_go(name: str, tmp_path: Path) -> None:
    model = small(name, policy="none")
    told = export(model, tmp_path / "model.pt2", size=(50, 77) if name in TABLES else None)
    assert told.least_side in (1, 33, 50)
    check(model, tmp_path / "model.pt2", 50, 77)
    if name not in TABLES:
        check(model, tmp_path / "model.pt2", 121, 40)


@pytest.mark.slow
def test_a_file_that_fails_where_its_model_does_not_is_refused(tmp_path: Path) -> None:
    """ONNX holds PP-LiteSeg's pooling for the size that it was traced at."""
    with pytest.raises(EngineError, match=r"the exported file (fails|does not answer).* try another --format or a fixed --size"):
        export(small("PPLiteSeg", policy="none"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2", pytest.param(".xml", marks=pytest.mark.exhaustive)])
def test_a_cascade_and_several_classes(ending: str, tmp_path: Path) -> None:
    classifier, segmenter = small("ResNetClassifier", ("presence",)), small("UNet", ("background", "bone", "disc"))
    frames = [scenes(segmenter, *size)[0] for size in ((50, 77), (20, 20), (80, 50))]
    chances = sorted(classifier.predict(frame).probability["presence"] for frame in frames)
    cascade = SpineCascade.from_parts(classifier, segmenter, gate=(chances[0] + chances[1]) / 2)
    told = export(cascade, tmp_path / f"model{ending}")
    assert told.outputs == ["mask", "probability", "presence"]
    exported = load_exported(tmp_path / f"model{ending}")
    empty = 0
    for frame in frames:
        found, wanted = exported.predict(frame), cascade.predict(frame)
        assert found.presence == pytest.approx(wanted.presence, abs=1e-4)
        np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-3)
        empty += not found.mask.any()
    assert empty == 1


@pytest.mark.slow
def test_weights_of_another_openvino_file_are_refused(model: SpineModel, tmp_path: Path) -> None:
    export(model, tmp_path / "model.xml", size=(32, 40))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    content = bytearray((tmp_path / "model.bin").read_bytes())
    content[100] ^= 64
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(EngineError, match=r"model.bin does not belong to model.xml; copy both files of one export"):
        load_exported(tmp_path / "model.xml")
    assert KEY in (tmp_path / "model.xml").read_text()
