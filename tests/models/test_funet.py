"""FUnet: counts, the U-Net branch, and what the frame weights do. What it shares with PNS-Net is in test_pnsnet.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_checks import count, settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.inference.runtime import optimize
from spinevision.models.funet import FUNet, FUNetNetwork, GatedUNet, pool
from spinevision.preprocess import Preprocess


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        network = FUNetNetwork()
    assert count(network) == 42_060_884
    parts = {name: count(part) for name, part in network.named_children()}
    assert parts == {
        "encoder": 8_671_048,
        "low_rfb": 305_845,
        "high_rfb": 789_829,
        "decoder": 4_465,
        "head": 16,
        "branch": 32_156_000,
        "inter_frame": 133_681,
    }
    assert [level.gate.positions.shape for level in network.branch.decoder] == [
        (1, 6, 512),
        (1, 28, 256),
        (1, 112, 128),
        (1, 448, 64),
    ]


def test_at_the_published_size_no_table_is_interpolated() -> None:
    branch = GatedUNet(4, 8, (16, 28)).eval()
    seen: list[tuple[int, ...]] = []
    for level in branch.decoder:
        level.gate.register_forward_pre_hook(lambda gate, args: seen.append((*gate.grid, *args[0].shape[-2:])))
    branch(torch.randn(1, 4, 16, 28))
    assert seen == [(2, 3, 2, 3), (4, 7, 4, 7), (8, 14, 8, 14), (16, 28, 16, 28)]


def test_the_branch_against_a_forward_written_by_hand() -> None:
    branch = settle(GatedUNet(4, 8, (16, 28)))

    def double(block: nn.Sequential, x: Tensor) -> Tensor:
        for brick in block:
            assert brick.conv.bias is None
            x = F.relu(brick.norm(F.conv2d(x, brick.conv.weight, padding=1)))
        return x

    for height, width in ((16, 28), (17, 35)):
        x = torch.randn(2, 4, height, width)
        skips = [double(branch.encoder[0], x)]
        for block in branch.encoder[1:]:
            skips.append(double(block, F.max_pool2d(skips[-1], 2)))
        assert skips[-1].shape[-2:] == (1, width // 16)
        y = skips.pop()
        for level in branch.decoder:
            skip = skips.pop()
            up = torch.zeros(2, skip.shape[1], *skip.shape[-2:])  # what the transposed convolution does not reach stays zero
            kernel, bias = level.up.weight, level.up.bias
            for row in range(2):
                for column in range(2):
                    values = torch.einsum("bihw,io->bohw", y, kernel[:, :, row, column]) + bias[:, None, None]
                    reached = up[:, :, row : 2 * y.shape[2] : 2, column : 2 * y.shape[3] : 2]
                    reached.copy_(values)
            y = level.gate(double(level.block, torch.cat((skip, up), dim=1)))
        expected = F.conv2d(y, branch.out.weight, branch.out.bias)
        torch.testing.assert_close(branch(x), expected, rtol=1e-4, atol=1e-5)


def test_pooling_drops_an_odd_row_and_leaves_a_single_one() -> None:
    x = torch.randn(1, 1, 5, 7)
    torch.testing.assert_close(pool(x), F.max_pool2d(x, 2))
    assert torch.equal(pool(x[:, :, :1]), F.max_pool2d(x[:, :, :1], (1, 2)))
    assert torch.equal(pool(x[:, :, :1, :1]), x[:, :, :1, :1])


@pytest.mark.parametrize("length", [1, 3, 5, 7])
def test_a_frame_of_a_clip_has_the_logits_of_the_still_times_its_weight(length: int) -> None:
    network = settle(FUNetNetwork(out_channels=3, frames=5, width=8))
    clips = torch.randn(2, length, 3, 33, 48)
    found: list[Tensor] = []
    network.inter_frame.register_forward_hook(lambda module, args, out: found.append(out))
    with torch.no_grad():
        logits, stills = network(clips), network(clips.flatten(0, 1)).unflatten(0, (2, length))
    (weights,) = found  # the stills asked for none
    assert weights.shape == (2, length)
    assert weights.min() > 0
    torch.testing.assert_close(logits, weights[:, :, None, None, None] * stills)
    assert torch.equal(logits > 0, stills > 0)
    assert torch.equal(logits.argmax(dim=2), stills.argmax(dim=2))


def test_windows_of_a_clip() -> None:
    network = settle(FUNetNetwork(frames=5, width=8))
    frames = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        whole, first, last = (network(clip[None])[0] for clip in (frames, frames[:5], frames[2:]))
        torch.testing.assert_close(whole, torch.cat((first, last[3:])))
        short, repeated = network(frames[None, :3])[0], network(frames[None, [0, 1, 2, 2, 2]])[0]
        torch.testing.assert_close(short, repeated[:3])
        assert not torch.allclose(last[:3], whole[2:5])  # covered twice, answered by the first window


def test_the_fine_maps_decide_the_weights_and_the_branch_sees_the_coarse_ones() -> None:
    network = settle(FUNetNetwork(frames=2, width=8))
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("inter_frame", "branch"):
        getattr(network, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: tuple(args[0].shape)}))
    clip = torch.randn(1, 2, 3, 32, 48)
    with torch.no_grad():
        logits = network(clip)
        low, high = network.encoder(clip[0])
        high = F.interpolate(network.branch(network.high_rfb(high)), scale_factor=2, mode="bilinear", align_corners=False)
        low = network.low_rfb(low)
        fused = F.conv2d(network.decoder(low, high), network.head[1].weight)
        fused = fused * network.inter_frame(low[None])[0, :, None, None, None]
        expected = F.interpolate(fused, scale_factor=8, mode="bilinear", align_corners=False)
    assert seen == {"inter_frame": (1, 2, 3, 4, 6), "branch": (2, 4, 2, 3)}
    torch.testing.assert_close(logits[0], expected)
    assert network.head[1].bias is None


def test_without_the_part_between_frames_nothing_is_weighed_and_nothing_remembered() -> None:
    network = settle(FUNetNetwork(frames=3, width=8))
    clip = torch.randn(1, 4, 3, 32, 48)
    with torch.no_grad():
        weighed, stills = network(clip), network(clip[0])
        network.inter_frame = None
        torch.testing.assert_close(network(clip)[0], stills)
        logits, memory = network.stream(clip[:, 3])
    assert not torch.allclose(weighed[0], stills)
    torch.testing.assert_close(logits, stills[3:])
    assert memory == ()


ABLATION = ({"inter_frame_attention": False, "channel_attention": False}, {"channel_attention": False})


@pytest.mark.parametrize("arguments", ABLATION, ids=["base", "ifa"])
def test_the_ablation_leaves_out_its_parts_and_nothing_else(arguments: dict[str, bool]) -> None:
    with torch.device("meta"):
        whole = {name: tensor.shape for name, tensor in FUNetNetwork().state_dict().items()}
        less = {name: tensor.shape for name, tensor in FUNetNetwork(**arguments).state_dict().items()}
    gates = {name for name in whole if name.startswith("branch.decoder.") and ".gate." in name}
    weights = {name for name in whole if name.startswith("inter_frame.")} if "inter_frame_attention" in arguments else set()
    assert len(gates) == 4 * 4
    assert less == {name: shape for name, shape in whole.items() if name not in gates | weights}


def test_without_gates_the_branch_is_the_one_whose_gates_are_open() -> None:
    gated, plain = settle(GatedUNet(4, 8, (16, 28))), GatedUNet(4, 8, (16, 28), gated=False).eval()
    plain.load_state_dict({name: tensor for name, tensor in gated.state_dict().items() if ".gate." not in name})
    for level in gated.decoder:
        level.gate.norm.weight.data.zero_()
        level.gate.norm.bias.data.fill_(100.0)  # its sigmoid is 1
    x = torch.randn(2, 4, 17, 35)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), gated(x))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ABLATION, ids=["base", "ifa"])
def test_the_ablation_streams_trains_on_stills_and_comes_back(arguments: dict[str, bool], tmp_path: Path) -> None:
    preprocess = Preprocess((32, 48))
    model = FUNet(["nerve"], width=8, frames=3, preprocess=preprocess, **arguments)
    model.settings = type(model.settings)(stills=True)
    model.setup("fit")
    learning = model.network(torch.randn(2, 3, 32, 48)).square().mean()
    learning.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    model.settings = type(model.settings)()
    model.setup("fit")
    settle(model.network)
    model.save_pretrained(tmp_path / "model")
    loaded = FUNet.from_pretrained(tmp_path / "model")
    clip = torch.randn(1, 4, 3, 32, 48)
    with torch.no_grad():
        expected, memory, streamed = model(clip), (), []
        assert torch.equal(loaded(clip), expected)
        for frame in clip.unbind(1):
            logits, memory = model.network.stream(frame, memory)
            streamed.append(logits)
        last = model(clip[:, 1:])[:, -1]
        stills = model(clip[0])
    torch.testing.assert_close(streamed[-1], last)
    meet = "inter_frame_attention" not in arguments
    assert torch.allclose(stills, expected[0], atol=1e-6) is not meet
    assert bool(memory) is meet
    if not meet:
        copy = optimize(model, compile=False)  # which compares its answers, of clip and stream, with the model's
        torch.testing.assert_close(copy(clip), expected, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_from_before_the_ablation_is_the_whole_network(tmp_path: Path) -> None:
    model = FUNet(["nerve"], width=8, frames=3)
    told = {name: value for name, value in model.hparams.items() if not name.endswith("_attention")}
    assert len(told) == len(model.hparams) - 2
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": told}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    loaded = FUNet.from_checkpoint(tmp_path / "best.ckpt")
    assert loaded.arguments == model.arguments
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
