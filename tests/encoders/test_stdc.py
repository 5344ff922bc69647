"""STDC: sizes, the cat block by hand, and published weights against the same network written with plain operations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision import PPLiteSeg
from spinevision.encoders.stdc import STDC, STDC1, STDC2, CatBlock
from spinevision.encoders.weights import WeightError

WIDTH = 4


@pytest.mark.parametrize(("blocks", "parameters"), [(STDC1, 5_318_304), (STDC2, 9_348_768)])
def test_published_parameter_count(blocks: Sequence[int], parameters: int) -> None:
    with torch.device("meta"):
        backbone = STDC(blocks)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_maps_at_strides_8_16_and_32() -> None:
    for blocks in (STDC1, STDC2):
        maps = STDC(blocks, width=4).eval()(torch.randn(1, 3, 64, 96))
        assert [tuple(each.shape) for each in maps] == [(1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]


def test_the_average_of_the_skipped_part_counts_no_padding() -> None:
    pool = CatBlock(4, 8, halve=True).pool
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # of rows and columns 0-1 and 1-3: (0 1 4 5), (1 2 3 5 6 7), (4 5 8 9 12 13), (5 ... 15)
    assert pool(x)[0, 0].tolist() == [[2.5, 4.0], [8.5, 10.0]]


def conv_norm(state: dict[str, Tensor], conv: str, norm: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
    return F.batch_norm(x, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])


def published_backbone(state: dict[str, Tensor], x: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """STDC with cat blocks from tensors in the authors' layout."""

    def unit(path: str, x: Tensor, stride: int = 1) -> Tensor:
        return conv_norm(state, f"{path}.conv", f"{path}.bn", x, stride).relu()

    x = unit("features.1", unit("features.0", x, 2), 2)
    maps, index = [], 2
    for count in blocks:
        for place in range(count):
            path = f"features.{index}"
            first = unit(f"{path}.conv_list.0", x)
            x, skipped = first, first
            if place == 0:
                x = conv_norm(state, f"{path}.avd_layer.0", f"{path}.avd_layer.1", first, 2, first.shape[1])
                ones = torch.ones_like(first)
                skipped = F.avg_pool2d(first, 3, 2, 1) / F.avg_pool2d(ones, 3, 2, 1)
            second = unit(f"{path}.conv_list.1", x)
            third = unit(f"{path}.conv_list.2", second)
            x = torch.cat((skipped, second, third, unit(f"{path}.conv_list.3", third)), dim=1)
            index += 1
        maps.append(x)
    return maps


def published_weights(blocks: Sequence[int]) -> dict[str, Tensor]:
    """Random weights in the authors' layout, with what a file holds besides the backbone."""
    state: dict[str, Tensor] = {}

    def norm(path: str, channels: int) -> None:
        state[f"{path}.weight"], state[f"{path}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels)
        state[f"{path}.running_mean"], state[f"{path}.running_var"] = torch.randn(channels), torch.rand(channels) + 0.5
        state[f"{path}.num_batches_tracked"] = torch.tensor(7)

    def unit(path: str, before: int, after: int, kernel: int) -> None:
        state[f"{path}.conv.weight"] = torch.randn(after, before, kernel, kernel) / (before * kernel**2) ** 0.5
        norm(f"{path}.bn", after)

    unit("features.0", 3, WIDTH // 2, 3)
    unit("features.1", WIDTH // 2, WIDTH, 3)
    before, index = WIDTH, 2
    for stage, count in enumerate(blocks):
        after = 4 * WIDTH * 2**stage
        for place in range(count):
            widths = (before, after // 2, after // 4, after // 8, after // 8)
            for k in range(4):
                unit(f"features.{index}.conv_list.{k}", widths[k], widths[k + 1], 1 if k == 0 else 3)
            if place == 0:
                state[f"features.{index}.avd_layer.0.weight"] = torch.randn(after // 2, 1, 3, 3) / 3
                norm(f"features.{index}.avd_layer.1", after // 2)
            before, index = after, index + 1
    unit("conv_last", 16 * WIDTH, 1024, 1)
    state |= {"fc.weight": torch.randn(8, 1024), "bn.weight": torch.ones(8), "linear.weight": torch.randn(5, 8)}
    return state | {"x2.0.conv.weight": state["features.0.conv.weight"].clone()}


@pytest.mark.parametrize(("variant", "blocks"), [("t", STDC1), ("b", STDC2)])
@pytest.mark.parametrize("layout", ["authors", "paddle"])
def test_published_weights_fill_the_backbone_which_then_computes_the_same(
    variant: str, blocks: Sequence[int], layout: str, tmp_path: Path
) -> None:
    state = published_weights(blocks)
    stored = state
    if layout == "paddle":
        stored = {name.replace("running_mean", "_mean").replace("running_var", "_variance"): state[name] for name in state}
        stored = {name: tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")}
    save_file(stored, tmp_path / "stdc.safetensors")
    model = PPLiteSeg(["nerve"], variant=variant, width=WIDTH).eval()  # type: ignore[arg-type]
    conversion = model.load_encoder(tmp_path / "stdc.safetensors")
    assert {*conversion.used, *conversion.unused} == set(stored)
    assert all(name.startswith("features.") for name in conversion.used)
    assert {name for name in conversion.unused if not name.endswith("num_batches_tracked")} == {
        name for name in stored if not name.startswith("features.")
    } - {"conv_last.bn.num_batches_tracked"}

    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(model.network.encoder(x), published_backbone(state, x, blocks), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_renamed_tensor_is_reported_by_name(tmp_path: Path) -> None:
    state = published_weights(STDC1)
    state["features.3.conv_list.2.konv.weight"] = state.pop("features.3.conv_list.2.conv.weight")
    save_file(state, tmp_path / "stdc.safetensors")
    with pytest.raises(WeightError, match=r"missing features\.3\.conv_list\.2\.conv\.weight; not known .*konv\.weight; nothing"):
        PPLiteSeg(["nerve"], width=WIDTH).load_encoder(tmp_path / "stdc.safetensors")


def test_no_activation_is_in_place() -> None:
    assert not any(module.inplace for module in STDC(width=4).modules() if isinstance(module, nn.ReLU))
