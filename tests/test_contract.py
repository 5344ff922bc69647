"""What every architecture promises, at its small size; a new one is tested here as soon as it is in the table."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from network_checks import settle, settle_on, smooth_frames
from torch.utils.data import DataLoader

from spinevision.models import find_architecture, list_architectures
from spinevision.models.arguments import check_arguments
from spinevision.models.base import SpineModel
from spinevision.models.classifier import SpineClassifier
from spinevision.models.training import frozen_modules
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch

BINARY, MULTICLASS = ["nerve"], ["background", "bone", "disc"]

every_architecture = pytest.mark.parametrize("name", list_architectures())
both_kinds = pytest.mark.parametrize("labels", [BINARY, MULTICLASS], ids=["binary", "multiclass"])


def make(name: str, labels: Sequence[str] = BINARY, **arguments: object) -> SpineModel:
    kind = find_architecture(name)
    return kind(labels, **{**kind.SMALL, **arguments})


def settled(model: SpineModel) -> SpineModel:
    """Eval mode, with normalisation statistics that no fault can hide behind.

    Those of a clip model are the statistics of a few clips: products of three features, as PNSNet's raw scores make of them, would
    leave every range with made-up ones.
    """
    return settle_on(model, smooth_frames(4, model.clip_length, 3, 48, 48)) if model.clip_length else settle(model)


def batch(model: SpineModel, frames: int = 2, height: int = 32, width: int = 32) -> FrameBatch:
    """What the data module would feed the model: frames or clips with masks, or frames with presence."""
    spec, count = model.input_spec, len(model.labels)
    about = {"names": ["frame"] * frames * (spec.frames or 1), "groups": ["patient"] * frames}
    values = torch.randn(frames, *([spec.frames] if spec.frames else []), 3, height, width)
    if spec.target == "presence":
        presence = torch.randint(0, 2, (frames, count), dtype=torch.uint8)
        return FrameBatch(values, None, presence=presence, **about)
    first = values.select(-3, 0)
    masks = (first > 0 if count == 1 else torch.randint(0, count, first.shape)).to(torch.uint8)
    masks[..., :2, :] = 255
    return FrameBatch(values, masks, **about)


def inputs(model: SpineModel, height: int, width: int) -> list[torch.Tensor]:
    """Everything the network takes at one size: a frame, and for a clip model clips of several lengths too."""
    length = model.clip_length
    clips = [smooth_frames(1, count, 3, height, width) for count in (1, length, length + 2)] if length else []
    return [smooth_frames(1, 3, height, width), *clips]


def answer_shape(model: SpineModel, frames: torch.Tensor) -> tuple[int, ...]:
    count = model.labels.channels
    return (len(frames), count) if isinstance(model, SpineClassifier) else (*frames.shape[:-3], count, *frames.shape[-2:])


def variants(name: str) -> list[dict[str, object]]:
    """Ways to train the architecture."""
    deep = "deep_supervision" in inspect.signature(find_architecture(name)).parameters
    return [{}, {"deep_supervision": True}] if deep else [{}]


@every_architecture
@both_kinds
def test_any_size_in_and_the_same_size_out(name: str, labels: list[str]) -> None:
    model = make(name, labels).eval()
    for size in ((1, 1), (17, 33), (64, 64), (250, 130)):
        for frames in inputs(model, *size):
            with torch.no_grad():
                logits = model(frames)
            assert logits.shape == answer_shape(model, frames)
            assert logits.dtype == torch.float32
            assert logits.isfinite().all()


@every_architecture
def test_training_on_a_single_pixel_works_or_is_refused_in_one_sentence(name: str) -> None:
    model = make(name).train()
    try:
        loss = model.training_loss(batch(model, 1, 8, 8))
    except ValueError as refusal:  # a batch normalisation cannot normalise a single value
        assert re.match(r"cannot train on one (frame|clip) of 8x8 pixels.*use at least 2 (frames|clips)", str(refusal))
        assert "\n" not in str(refusal)
    else:
        assert loss.isfinite()
    assert model.training_loss(batch(model, 2, 8, 8)).isfinite()


@every_architecture
@both_kinds
def test_every_weight_learns_in_every_way_of_training(name: str, labels: list[str]) -> None:
    for arguments in variants(name):
        model = make(name, labels, **arguments).train()
        loss = model.training_loss(batch(model))
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        loss.backward()
        silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not silent  # a parameter without a gradient also stops a training of several processes
        # A bias before a normalisation has no gradient but for rounding; a kernel must have one.
        assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", [name for name in list_architectures() if find_architecture(name).INTER_FRAME])
def test_on_stills_every_weight_learns_that_is_not_for_clips_alone(name: str) -> None:
    model = make(name).train()
    model.settings = type(model.settings)(stills=True)
    for part in frozen_modules(model.network, model.INTER_FRAME):
        part.requires_grad_(False)
    learning = batch(model)
    assert learning.frames.ndim == 4
    model.training_loss(learning).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@every_architecture
@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (BINARY, torch.float32),
        pytest.param(MULTICLASS, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(BINARY, torch.float16, marks=pytest.mark.slow),
    ],
)
def test_a_saved_model_comes_back_to_the_last_bit(name: str, labels: list[str], dtype: torch.dtype, tmp_path: Path) -> None:
    model = settled(make(name, labels, preprocess=Preprocess((96, 64)))).to(dtype)
    model.set_operating_point({"threshold": 0.3125 if len(labels) == 1 else None})
    model.save_pretrained(tmp_path / "model")
    loaded = SpineModel.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(model)
    assert (list(loaded.labels), loaded.arguments, loaded.preprocess.config(), loaded.operating_point()) == (
        labels,
        model.arguments,
        model.preprocess.config(),
        model.operating_point(),
    )
    assert loaded.device.type == "cpu"
    assert loaded.dtype == dtype
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    saved = model.state_dict()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in loaded.state_dict().items())
    frames = inputs(model, 40, 50)[-1]
    with torch.no_grad():
        assert torch.equal(loaded(frames), model(frames))


_FRESH_PROCESS = """
import socket, sys, torch
def refuse(*_): raise RuntimeError("the network is blocked")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
torch.set_num_threads(1)
from spinevision import SpineModel
for name in sys.argv[2:]:
    model = SpineModel.from_pretrained(f"{sys.argv[1]}/{name}")
    frames, logits = torch.load(f"{sys.argv[1]}/{name}.pt")
    with torch.no_grad():
        print(name, type(model).__name__ == name and torch.equal(model(frames), logits))
"""


@pytest.mark.slow
def test_a_fresh_process_without_network_gives_the_same_logits_to_the_last_bit(tmp_path: Path) -> None:
    for name in list_architectures():
        model = settled(make(name))
        model.save_pretrained(tmp_path / name)
        frames = inputs(model, 70, 50)[-1]
        with torch.no_grad():
            torch.save((frames, model(frames)), tmp_path / f"{name}.pt")
    command = [sys.executable, "-c", _FRESH_PROCESS, str(tmp_path), *list_architectures()]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n")[:-1] == [f"{name} True" for name in list_architectures()]


@pytest.mark.slow
@every_architecture
def test_compiles_as_one_graph(name: str) -> None:
    model = settled(make(name))
    frames = inputs(model, 33, 47)[-1]  # of a clip model the longest: a still runs a part of the same
    torch.compiler.reset()
    compiled = torch.compile(model.network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(frames), model(frames))


@pytest.mark.slow
@every_architecture
def test_exports(name: str) -> None:
    model = settled(make(name))
    frames = inputs(model, 33, 47)[-1]
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model.network, (frames,)).module()(frames), model(frames))


@every_architecture
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.05)])
def test_half_precision_is_finite_and_near(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = settled(make(name))
    frames = inputs(model, 40, 33)[-1]
    with torch.no_grad():
        exact = model(frames)
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(frames)
        half = model.to(dtype)(frames)
    for logits in (mixed, half):
        assert logits.dtype == torch.float32
        assert (logits - exact).norm() < tolerance * exact.norm()


@pytest.mark.slow
@every_architecture
def test_the_state_dict_holds_the_network_and_nothing_else(name: str) -> None:
    model = make(name).eval()
    model.settings = type(model.settings)(class_weights=[3.0])
    model.training_loss(batch(model, height=48))
    model.predict(torch.zeros(8, 9, 3, dtype=torch.uint8).numpy())
    assert list(model.state_dict()) == [f"network.{key}" for key in model.network.state_dict()]


@every_architecture
def test_constructor_arguments_are_plain_data_in_full(name: str) -> None:
    kind = find_architecture(name)
    parameters = inspect.signature(kind).parameters
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values())
    assert next(iter(parameters)) == "labels"
    model = make(name)
    check_arguments(kind, model.arguments, name, skip={"labels", "preprocess"})
    assert set(model.hparams) == set(parameters)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


@pytest.mark.slow
@every_architecture
def test_trains_in_mixed_precision_and_its_checkpoint_opens_without_code(name: str, tmp_path: Path) -> None:
    model = make(name)
    loader = DataLoader([batch(model), batch(model)], batch_size=None)
    before = [parameter.detach().clone() for parameter in model.parameters() if parameter.ndim > 1]
    trainer = Trainer(
        max_epochs=1,
        precision="bf16-mixed",
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, loader)
    after = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    path = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["state_dict"]) == set(model.state_dict())
    frames = torch.randn(1, 3, 40, 40)
    for loaded in (type(model).load_from_checkpoint(path, weights_only=True), SpineModel.from_checkpoint(path)):
        assert type(loaded) is type(model)
        assert loaded.operating_point() == model.operating_point()
        assert loaded.preprocess.config() == model.preprocess.config()
        with torch.no_grad():
            assert torch.equal(loaded.eval()(frames), model.eval()(frames))


@every_architecture
def test_predict_restores_every_module_to_its_mode(name: str) -> None:
    model = make(name)
    model.train()
    next(module for module in model.network.modules() if not [*module.children()]).eval()
    modes = [module.training for module in model.modules()]
    statistics = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    frame = torch.randint(0, 256, (33, 47, 3), dtype=torch.uint8).numpy()
    prediction = model.predict(frame)
    if isinstance(model, SpineClassifier):
        assert list(prediction.probability) == list(prediction.present) == BINARY
    else:
        assert prediction.mask.shape == (33, 47)
        assert prediction.probability.shape == (1, 33, 47)
    with pytest.raises(KeyError), model.evaluating():
        raise KeyError
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, statistics[key]) for key, tensor in model.state_dict().items())
