"""``optimize``: the same answers from a copy that leaves its model alone, or no copy at all."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from network_checks import settle, settle_on, smooth_frames
from torch import Tensor, nn

from spinevision import (
    FUNet,
    PNSNet,
    Preprocess,
    ResNetClassifier,
    SpineCascade,
    SpineClassifier,
    SpineDataModule,
    SpineModel,
    SpineSegmenter,
    UNet,
    UNetPlusPlus,
    optimize,
)
from spinevision.hub.config import ModelFolderError
from spinevision.inference import runtime
from spinevision.inference.compiled import CompiledCall
from spinevision.inference.rewrites import NetworkGraph
from spinevision.models import find_architecture, list_architectures

QUICK = ("UNet", "ResNetClassifier")
"""Those that stand for all in the quick run."""
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")

SMALL = Preprocess((64, 64))


def made(name: str) -> SpineModel:
    kind = find_architecture(name)
    model = kind(labels=["presence" if issubclass(kind, SpineClassifier) else "nerve"], preprocess=SMALL, **kind.SMALL)
    if isinstance(model, (PNSNet, ResNetClassifier)):  # features multiplied with each other; a single logit
        settle_on(model.network, smooth_frames(*(2, 3, 3, 64, 64) if isinstance(model, PNSNet) else (4, 3, 64, 64)))
    else:
        settle(model.network)
    return model.eval()


def frame(height: int = 90, width: int = 120) -> np.ndarray:
    return (255 * smooth_frames(1, 3, height, width)[0].permute(1, 2, 0).sigmoid()).to(torch.uint8).numpy()


def state(model: SpineModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unet(**arguments: object) -> UNet:
    model = UNet(labels=["nerve"], width=4, preprocess=SMALL, **arguments)
    settle(model.network)
    return model.eval()


def running_normalisations(network: nn.Module, x: Tensor) -> list[nn.Module]:
    """Those that an answer comes from."""
    ran: list[nn.Module] = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(lambda norm, *_: ran.append(norm)) for norm in norms]
    with torch.inference_mode():
        network(x)
    for hook in hooks:
        hook.remove()
    return [norm for norm in norms if norm in ran]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_architectures()],
)
def test_the_copy_answers_as_the_model_does_and_leaves_it_alone(name: str) -> None:
    model = made(name)
    before, image = state(model), frame()
    copy = optimize(model, compile=False)
    assert type(copy) is type(model) and copy.runtime is not None and model.runtime is None
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    clips = (3,) if model.clip_length else ()
    norms, left = (len(running_normalisations(each.network, smooth_frames(1, *clips, 3, 64, 64))) for each in (model, copy))
    assert left <= (0.3 if name == "ImprovedUNet" else 0.1) * norms  # that one computes some of its kernels from the frame
    assert copy.runtime.rewrites.get("normalisations folded", 0) == norms - left
    assert len(copy.state_dict()) < len(before) or norms == 0
    with torch.inference_mode():
        for shape in ((1, *clips, 3, 64, 64), (1, 3, 3, 96, 128) if clips else (2, 3, 70, 45)):
            x = smooth_frames(*shape)
            logits = model(x)
            assert float((copy(x) - logits).abs().max()) < 1e-5 * float(logits.abs().max())

    expected, found = model.predict(image), copy.predict(image)
    if isinstance(model, SpineClassifier):
        assert found.probability == pytest.approx(expected.probability, abs=1e-5)
        return
    np.testing.assert_allclose(found.probability, expected.probability, atol=2e-5)
    certain = np.abs(expected.probability[0] - 0.5) > 1e-4
    assert np.array_equal(found.mask[certain], expected.mask[certain])


@pytest.fixture
def not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has nothing to do with rewriting, on a network for which that takes seconds."""
    monkeypatch.setattr(runtime, "_rewrite", lambda network, example: {})


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("SegFormer", "FUNet"))])
def test_bfloat16_is_near_and_its_weights_are_of_that_type(name: str, request: pytest.FixtureRequest) -> None:
    if name == "FUNet":
        request.getfixturevalue("not_rewritten")
    model = made(name)
    copy = optimize(model, precision="bf16", compile=False)
    assert {tensor.dtype for tensor in copy.network.parameters()} == {torch.bfloat16}
    assert next(model.network.parameters()).dtype == torch.float32
    x = smooth_frames(1, 3, 64, 64)
    with torch.inference_mode():
        before, after = model(x), copy(x)
    assert after.dtype == torch.float32
    assert 0 < float((before - after).abs().max()) < 0.05 * max(1, float(before.abs().max()))


def test_a_copy_has_clean_names_and_cannot_be_saved_trained_or_copied_again(tmp_path: Path, phantom_folder: Path) -> None:
    copy = optimize(unet(), compile=False)
    assert set(copy.state_dict()) <= set(unet().state_dict())
    with pytest.raises(ModelFolderError, match="inference copy"):
        copy.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ValueError, match="cannot be trained"):
        trainer.fit(copy, SpineDataModule(phantom_folder))
    with pytest.raises(ValueError, match="inference copy already"):
        optimize(copy)


def test_a_rewrite_that_changes_the_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(network: nn.Module, graph: NetworkGraph) -> int:
        network.head.bias.data += 100
        return 0

    monkeypatch.setattr(runtime, "fold_normalization", spoil)
    with pytest.raises(ValueError, match=r"in fp32 the outputs of this UNet move by .* at most 1e-03 is allowed"):
        optimize(unet(), compile=False)


@pytest.mark.slow
def test_weights_that_overflow_in_float16_are_refused() -> None:
    model = unet()
    model.network.head.weight.data *= 1e6
    optimize(model, precision="bf16", compile=False)
    with pytest.raises(ValueError, match=r"in fp16 .*; use fp32"):
        optimize(model, precision="fp16", compile=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16"),
        ({"output": "logits"}, "output must be one of probability, mask"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"sizes": [(64, 0)]}, "sizes must be pairs"),
        ({"prune": 2}, r"prune must be 1, 2 or 3, of a U-Net\+\+ with deep supervision, found 2 of UNet"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        optimize(unet(), compile=False, **arguments)


def test_masks_alone_have_no_probability() -> None:
    model, image = unet(), frame()
    found = optimize(model, output="mask", compile=False).predict(image)
    assert found.probability is None
    assert np.array_equal(found.mask, model.predict(image).mask)
    assert found.area_fraction == model.predict(image).area_fraction


@pytest.mark.usefixtures("not_rewritten")
@pytest.mark.parametrize(("threshold", "dropped"), [(0.5, True), (0.6, False)])
def test_frame_weights_count_where_the_threshold_is_not_a_half(threshold: float, dropped: bool) -> None:
    model = made("FUNet")
    assert isinstance(model, FUNet)
    model.threshold = threshold
    clip = [frame() for _ in range(3)]
    copy = optimize(model, output="mask", compile=False)
    assert (copy.network.inter_frame is None) is dropped
    assert optimize(model, compile=False).network.inter_frame is not None
    for before, after in zip(model.predict(clip), copy.predict(clip), strict=True):
        assert np.mean(before.mask != after.mask) < 1e-3


def test_a_pruned_copy_answers_with_the_earlier_head() -> None:
    arguments = {"labels": ["nerve"], "width": 4, "deep_supervision": True, "preprocess": SMALL}
    model, pruned = UNetPlusPlus(**arguments), UNetPlusPlus(prune=2, **arguments)
    settle(model.network)
    pruned.load_state_dict(model.state_dict())
    copy = optimize(model, prune=2, compile=False)
    assert model.network.predict_depth == 4
    image = frame()
    expected = pruned.eval().predict(image).probability
    np.testing.assert_allclose(copy.predict(image).probability, expected, atol=2e-5)
    assert not np.allclose(model.predict(image).probability, expected, atol=1e-3)


def test_both_parts_of_a_cascade_are_rewritten() -> None:
    classifier, segmenter = made("ResNetClassifier"), made("UNet")
    assert isinstance(classifier, SpineClassifier) and isinstance(segmenter, SpineSegmenter)
    cascade, image = SpineCascade.from_parts(classifier, segmenter, gate=0.0), frame()
    copy = optimize(cascade, compile=False)
    assert copy.runtime is not None and copy.runtime.rewrites["normalisations folded"] == 20 + 22
    assert copy.classifier.network is copy.network.classifier
    expected, found = cascade.predict(image), copy.predict(image)
    assert found.presence == pytest.approx(expected.presence, abs=1e-5)
    np.testing.assert_allclose(found.probability, expected.probability, atol=2e-5)
    copy.arguments["gate"] = 1.0
    assert copy.predict(image).probability.max() < 1e-6 < found.probability.max()  # shut


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    model = unet()
    with caplog.at_level(logging.WARNING, "spinevision"):
        copy = optimize(model)
    assert "no C++ compiler" in caplog.text
    assert copy.runtime is not None and not copy.runtime.compiled
    image = frame()
    np.testing.assert_allclose(copy.predict(image).probability, model.predict(image).probability, atol=2e-5)


# Compiled


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@needs_compiler
@pytest.mark.slow
def test_sizes_that_were_asked_for_are_compiled_and_no_others() -> None:
    model = unet()
    model.network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    settle(model.network)  # a network that compiles in a moment
    before = graphs()
    copy = optimize(model, sizes=[(64, 64), (48, 80)], batch_sizes=(1, 4))
    assert copy.runtime is not None and copy.runtime.compiled
    assert graphs() == before + 4
    with torch.inference_mode():
        for shape in ((1, 3, 64, 64), (4, 3, 48, 80), (3, 3, 64, 64), (5, 3, 64, 64), (1, 3, 65, 64), (2, 3, 100, 30)):
            x = smooth_frames(*shape)
            torch.testing.assert_close(copy(x), model(x), rtol=1e-4, atol=1e-4)
            copy(smooth_frames(shape[0], 2, *shape[1:])[:, 0])  # other strides
    assert graphs() == before + 4
    assert not any("_orig_mod" in name for name in copy.state_dict())


@needs_compiler
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_compiled_clip_model_streams() -> None:
    model = made("FUNet")
    copy = optimize(model, clips=["stream"])
    clip = smooth_frames(1, 6, 3, 64, 64)  # whose frames have other strides than one that stands alone
    before, memory = graphs(), ()
    with torch.inference_mode():
        for end, image in enumerate(clip.unbind(1), start=1):
            logits, memory = copy.call_network(image, "stream", memory)
            expected = model(clip[:, max(0, end - 3) : end])[:, -1]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert graphs() == before


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.slow
@needs_compiler
def test_a_batch_is_filled_up_to_the_next_that_was_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CompiledCall(Doubling(), torch.device("cpu"))
    for batch in (2, 4):
        call.learn(torch.ones(batch, 3))
    ran: list[tuple[int, ...]] = []
    monkeypatch.setattr(call, "_compiled", lambda x: ran.append(tuple(x.shape)) or 2 * x)
    for batch in (1, 2, 3, 4, 5):
        x = torch.randn(batch, 3)
        assert torch.equal(call(x), 2 * x)
    call(torch.ones(1, 4))
    call(torch.ones(1, 3, dtype=torch.float64))
    assert ran == [(2, 3), (2, 3), (4, 3), (4, 3)]


def test_a_model_that_does_not_resize_needs_sizes(caplog: pytest.LogCaptureFixture) -> None:
    model = UNet(labels=["nerve"], width=4, preprocess=Preprocess(resize="none"))
    with caplog.at_level(logging.WARNING, "spinevision"):
        copy = optimize(model.eval())
    assert "no sizes were given" in caplog.text
    assert copy.runtime is not None and not copy.runtime.compiled


@pytest.mark.slow
def test_the_copy_of_a_trained_model_has_no_trainer(trained_run: Path) -> None:
    model = SpineModel.from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    model._trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert optimize(model, compile=False)._trainer is None


def test_classifiers_too() -> None:
    model = made("ResNetClassifier")
    assert isinstance(model, ResNetClassifier)
    image = frame()
    found, expected = optimize(model, output="mask", compile=False).predict(image), model.predict(image)
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)
