"""Filling an encoder with published weights: whole or not at all, and recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spinevision import ResNetClassifier, SpineModel, TrainingSettings, UNet
from spinevision.encoders.weights import WeightError
from spinevision.models.pretrained import EncoderSource
from spinevision.models.training import build_optimizer, frozen_modules


def published(path: Path, **changes: str) -> dict[str, torch.Tensor]:
    """Weights of another network of the same kind with a head for 1000 classes, written in the published layout."""
    torch.manual_seed(5)
    state = ResNetClassifier([f"class {index}" for index in range(10)], **ResNetClassifier.SMALL).network.state_dict()
    state = {changes.get(name.replace(".", "_"), name): tensor.contiguous() for name, tensor in state.items()}
    save_file(state, path)
    return state


def small(labels: list[str] | None = None) -> ResNetClassifier:
    return ResNetClassifier(labels or ["presence"], **ResNetClassifier.SMALL)


def test_every_tensor_of_the_encoder_is_filled_and_the_head_stays(tmp_path: Path) -> None:
    state = published(tmp_path / "w.safetensors")
    model = small()
    head = model.network.fc.weight.clone()
    report = model.load_encoder(tmp_path / "w.safetensors")
    for name, tensor in model.network.state_dict().items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name
    assert torch.equal(model.network.fc.weight, head)
    assert {name for name in report.unused if not name.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}
    assert "conv1.weight" in report.used


def test_a_renamed_tensor_is_reported_by_name_and_nothing_is_loaded(tmp_path: Path) -> None:
    published(tmp_path / "w.safetensors", layer2_0_conv1_weight="layer2.0.conv_one.weight")
    model = small()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises(WeightError, match=r"w\.safetensors: .*layer2\.0\.conv1\.weight.*layer2\.0\.conv_one\.weight"):
        model.load_encoder(tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert model.encoder_source is None


def test_where_they_came_from_is_kept_in_every_file(tmp_path: Path) -> None:
    published(tmp_path / "w.safetensors")
    model = small()
    model.load_encoder(tmp_path / "w.safetensors")
    expected = EncoderSource("w.safetensors", None, None)
    model.save_pretrained(tmp_path / "model", provenance={"patients": 3})
    assert SpineModel.from_pretrained(tmp_path / "model").encoder_source == expected
    config = (tmp_path / "model" / "config.json").read_text()
    assert '"patients": 3' in config
    assert "w.safetensors" in config
    assert str(tmp_path) not in config
    assert "encoder_weights" not in model.arguments


def test_an_architecture_without_such_an_encoder_refuses(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="UNet has no encoder that published weights fill"):
        UNet(["nerve"], width=4).load_encoder(tmp_path / "w.safetensors")


def test_the_encoder_learns_at_its_own_rate() -> None:
    model = small()
    settings = TrainingSettings(learning_rate=0.1, encoder_learning_rate_factor=0.25, weight_decay=0.5)
    groups = build_optimizer(model.network, settings, model.ENCODER).param_groups
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    for name, parameter in model.network.named_parameters():
        rate = 0.1 if name.startswith("fc.") else 0.025
        assert rates[id(parameter)] == (pytest.approx(rate), 0.5 if parameter.ndim > 1 else 0.0)
    assert len(build_optimizer(model.network, TrainingSettings(), model.ENCODER).param_groups) == 2


def test_encoder_names_the_encoder_in_freeze() -> None:
    model = small()
    frozen = {
        id(parameter) for part in frozen_modules(model.network, ["encoder"], model.ENCODER) for parameter in part.parameters()
    }
    assert {name for name, p in model.network.named_parameters() if id(p) not in frozen} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf")])
def test_a_factor_that_cannot_be_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="encoder_learning_rate_factor must be above 0"):
        TrainingSettings(encoder_learning_rate_factor=factor)
