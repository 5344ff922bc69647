"""Swin weights in the published layout, as transformers writes it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import SwinConfig, SwinForImageClassification

from spinevision import SwinUNet
from spinevision.encoders.swin import resize_bias_table
from spinevision.encoders.weights import WeightError

INDEX = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"


@pytest.fixture(scope="module")
def published() -> SwinForImageClassification:
    """A narrow Swin-T, with windows of 3, and weights large enough for every difference to show."""
    config = SwinConfig(embed_dim=12, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=3, image_size=96)
    network = SwinForImageClassification(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def file(published: SwinForImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights; transformers no longer writes the index that published files hold, so that is put back."""
    folder = tmp_path_factory.mktemp("swin")
    published.save_pretrained(folder)
    save_file({**load_file(folder / "model.safetensors"), INDEX: torch.zeros(9, 9, dtype=torch.int64)}, folder / "swin.safetensors")
    return folder / "swin.safetensors"


@torch.no_grad()
def test_the_encoder_computes_what_transformers_computes(published: SwinForImageClassification, file: Path) -> None:
    model = SwinUNet(["nerve"], image_size=96, width=12).eval()
    model.load_encoder(file)
    reference = published.swin
    # Two blocks in the third stage here, six there.
    reference.encoder.layers[2].blocks = reference.encoder.layers[2].blocks[:2]
    for size in (192, 96):  # in this order: transformers never again shifts a layer once a map was no larger than its window
        frames = torch.randn(2, 3, size, size)
        expected = reference(frames, output_hidden_states=True)
        entries, last = model.network.encoder(frames)
        for entry, state in zip(entries, expected.hidden_states[:3], strict=True):
            torch.testing.assert_close(entry.flatten(1, 2), state, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last.flatten(1, 2), expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_every_published_tensor_is_accounted_for_and_the_decoder_is_filled_too(file: Path) -> None:
    model = SwinUNet(["nerve"], image_size=96, width=12)
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    conversion = model.load_encoder(file)
    tensors, after = load_file(file), model.network.state_dict()
    assert {*conversion.used, *conversion.unused} == set(tensors)
    spare = re.compile(r"swin\.encoder\.layers\.2\.blocks\.[2-5]\.")
    assert {name for name in conversion.unused if not spare.match(name)} == {"classifier.weight", "classifier.bias", INDEX}

    filled = {key for key in after if key.startswith(("encoder.", "decoder_blocks."))}
    assert set(conversion.tensors) == filled
    assert {key for key in after if torch.equal(before[key], after[key])} == set(after) - filled
    for level, stage in ((0, 2), (1, 1), (2, 0)):
        path = f"swin.encoder.layers.{stage}.blocks.1"
        assert torch.equal(after[f"decoder_blocks.{level}.1.mlp.0.weight"], tensors[f"{path}.intermediate.dense.weight"])
        fused = torch.cat([tensors[f"{path}.attention.self.{name}.bias"] for name in ("query", "key", "value")])
        assert torch.equal(after[f"decoder_blocks.{level}.1.attention.qkv.bias"], fused)


def test_tables_of_another_window_are_interpolated(file: Path) -> None:
    model = SwinUNet(["nerve"], image_size=128, width=12)
    model.load_encoder(file)
    table = load_file(file)["swin.encoder.layers.3.blocks.0.attention.self.relative_position_bias_table"]
    ours = model.network.encoder.stages[3][0].attention.bias_table
    assert ours.shape == (49, 24)
    torch.testing.assert_close(ours.detach(), resize_bias_table(table, 4))


def cubic(before: int, after: int) -> np.ndarray:
    """The matrix of one-dimensional cubic interpolation (Keys, a = -0.75) with half-pixel centres and a repeated border."""
    matrix = np.zeros((after, before))
    for target in range(after):
        centre = (target + 0.5) * before / after - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - source)
            weight = 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[target, min(max(source, 0), before - 1)] += weight
    return matrix


def test_interpolation_against_a_matrix_of_cubic_weights() -> None:
    table = torch.randn(13 * 13, 3)
    image = table.reshape(13, 13, 3).double().numpy()
    for window in (8, 4):
        weights = cubic(13, 2 * window - 1)
        expected = np.einsum("ai,bj,ijh->abh", weights, weights, image).reshape(-1, 3)
        torch.testing.assert_close(resize_bias_table(table, window).double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    assert resize_bias_table(table, 7) is table


def test_a_renamed_tensor_is_reported_by_name_and_nothing_is_loaded(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    name = "swin.encoder.layers.1.blocks.0.attention.self.key.bias"
    tensors["swin.encoder.layers.1.blocks.0.attention.self.kay.bias"] = tensors.pop(name)
    save_file(tensors, tmp_path / "renamed.safetensors")
    model = SwinUNet(["nerve"], image_size=96, width=12)
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    with pytest.raises(WeightError, match=rf"missing {re.escape(name)}; not known .*\.kay\.bias; nothing was loaded"):
        model.load_encoder(tmp_path / "renamed.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.network.state_dict().items())


def test_weights_of_a_wider_network_are_refused(file: Path) -> None:
    with pytest.raises(WeightError, match="of another shape"):
        SwinUNet(["nerve"], image_size=96, width=6).load_encoder(file)
