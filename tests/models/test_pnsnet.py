"""PNS-Net and the skeleton that it shares with FUnet: counts, wiring, clips and stills, sizes, weights of the backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from network_checks import count, settle, settle_on, smooth_frames
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from spinevision.layers.normalized_attention import NormalizedSelfAttention
from spinevision.models.funet import FUNet, FUNetNetwork
from spinevision.models.pnsnet import FusionDecoder, PNSNet, PNSNetNetwork
from spinevision.preprocess import Preprocess
from spinevision.structures import FrameBatch

both_networks = pytest.mark.parametrize("build", [PNSNetNetwork, FUNetNetwork])
both_models = pytest.mark.parametrize("kind", [PNSNet, FUNet])


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        network = PNSNetNetwork()
    assert count(network) == 9_793_731
    parts = {name: count(part) for name, part in network.named_children()}
    assert parts == {
        "encoder": 8_671_048,
        "low_rfb": 305_845,
        "high_rfb": 789_829,
        "decoder": 4_465,
        "head": 16,
        "inter_frame": 2 * 11_264,
    }
    assert [block.norm.weight.shape for block in network.inter_frame] == [(8, 16, 28)] * 2


def test_fusion_against_plain_operations() -> None:
    decoder = settle(FusionDecoder(5, 6, 4))
    nn.init.uniform_(decoder.act.weight, 0, 0.9)
    low, high = torch.randn(2, 5, 7, 6), torch.randn(2, 6, 7, 6)
    joint = F.conv2d(high, decoder.high.weight)
    near = F.conv2d(joint[:, :2], decoder.near.weight, padding=1)
    far = F.conv2d(joint[:, 2:], decoder.far.weight, padding=2, dilation=2)
    total = decoder.high_norm(torch.cat((near, far), dim=1)) + decoder.low_norm(F.conv2d(low, decoder.low.weight))
    total = torch.where(total > 0, total, decoder.act.weight[:, None, None] * total)
    conv, norm, act = decoder.refine
    out = norm(F.conv2d(total, conv.weight, padding=1))
    assert act.weight.shape == (1,)
    torch.testing.assert_close(decoder(low, high), torch.where(out > 0, out, act.weight * out))
    assert all(module.bias is None for module in decoder.modules() if isinstance(module, nn.Conv2d))


def by_hand(network: PNSNetNetwork, frames: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of frames whose sides 16 divides, with ``mix`` applied to the coarse maps."""
    low, high = network.encoder(frames)
    low, high = network.low_rfb(low), mix(network.high_rfb(high))
    high = F.interpolate(high, scale_factor=2, mode="bilinear", align_corners=False)
    logits = F.conv2d(network.decoder(low, high), network.head[1].weight)
    return F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)


def test_clips_and_stills_against_a_forward_written_by_hand() -> None:
    clips = torch.randn(2, 4, 3, 32, 48)
    network = settle_on(PNSNetNetwork(out_channels=2, width=8), clips)
    first, second = network.inter_frame

    def progressive(maps: Tensor) -> Tensor:
        h = maps.reshape(2, 4, *maps.shape[1:])
        h1 = first(h) + h
        h2 = second(h1) + h1
        return (h + h2).reshape(maps.shape)

    frames = clips.reshape(8, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(clips), by_hand(network, frames, progressive).reshape(2, 4, 2, 32, 48))
        torch.testing.assert_close(network(frames), by_hand(network, frames, lambda maps: maps))


def test_a_still_runs_no_block_between_frames_and_a_clip_both() -> None:
    network = PNSNetNetwork(width=8).eval()
    calls: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, NormalizedSelfAttention):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    network(torch.randn(2, 3, 16, 16))
    assert not calls
    network(torch.randn(2, 2, 3, 16, 16))
    assert calls == [*network.inter_frame]


networks_of_three = pytest.mark.parametrize(
    "build",
    [
        lambda: FUNetNetwork(out_channels=2, frames=3, width=8),
        lambda: PNSNetNetwork(out_channels=2, frames=3, width=8),
        lambda: PNSNetNetwork(out_channels=2, frames=3, width=8, aggregation="softmax"),
    ],
    ids=["FUNet", "PNSNet", "PNSNet softmax"],
)


@networks_of_three
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_stream_answers_as_the_window_that_ends_with_the_frame(
    build: Callable[[], nn.Module], dtype: torch.dtype, tolerance: float
) -> None:
    frames = smooth_frames(2, 7, 3, 33, 47)
    network = settle_on(build(), frames[:, :4]).to(dtype)
    frames, memory, seen = frames.to(dtype), (), []
    network.encoder.register_forward_hook(lambda *args: seen.append(len(args[1][0])))
    with torch.no_grad():
        for last in range(7):
            expected = network(frames[:, max(0, last - 2) : last + 1])[:, -1]
            seen.clear()
            logits, memory = network.stream(frames[:, last], memory)
            assert seen == [2]  # the new frame of each sequence and no other
            assert (logits - expected).norm() <= tolerance * expected.norm()
            assert logits.dtype == torch.float32
            assert all(tensor.shape[1] == min(last + 1, 2) for tensor in memory)


@networks_of_three
def test_a_stream_leaves_its_memory_as_it_was(build: Callable[[], nn.Module]) -> None:
    network, frames = settle_on(build(), smooth_frames(2, 3, 3, 32, 32)), smooth_frames(4, 1, 3, 32, 32)
    with torch.no_grad():
        _, memory = network.stream(frames[0])
        before = [tensor.clone() for tensor in memory]
        once, _ = network.stream(frames[1], memory)
        network.stream(frames[2], memory)
        again, _ = network.stream(frames[1], memory)
    assert torch.equal(once, again)
    assert all(map(torch.equal, memory, before))
    assert not torch.equal(once, network.stream(frames[1])[0])


@networks_of_three
def test_a_stream_takes_one_frame_at_a_time(build: Callable[[], nn.Module]) -> None:
    for shape in ((3, 16, 16), (1, 2, 3, 16, 16), (0, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"a stream takes one new frame \(B, 3, H, W\) at a time"):
            build().eval().stream(torch.zeros(shape))


@pytest.mark.slow
@networks_of_three
def test_with_a_full_memory_a_stream_is_one_graph_for_all_frames(build: Callable[[], nn.Module]) -> None:
    network, frames = settle_on(build(), smooth_frames(2, 3, 3, 48, 48)), smooth_frames(8, 1, 3, 48, 48)
    graphs = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(network.stream, fullgraph=True, backend=graphs)
    with torch.no_grad():
        memory: tuple[Tensor, ...] = ()
        for frame in frames[:2]:
            _, memory = network.stream(frame, memory)
        for frame in frames[2:]:
            expected = network.stream(frame, memory)[0]
            logits, memory = compiled(frame, memory)
            torch.testing.assert_close(logits, expected)
    assert graphs.frame_count == 1


def test_aggregation_reaches_the_blocks() -> None:
    assert PNSNet(["nerve"], width=8).network.inter_frame[0].aggregation == "scores"
    model = PNSNet(["nerve"], width=8, aggregation="softmax")
    assert [block.aggregation for block in model.network.inter_frame] == ["softmax", "softmax"]


def test_frames_of_a_clip_see_each_other_and_clips_of_a_batch_do_not() -> None:
    network = settle(PNSNetNetwork(width=8, aggregation="softmax"))
    clips = torch.randn(2, 3, 3, 32, 32)
    changed = clips.clone()
    changed[0, 2] += 1
    with torch.no_grad():
        before, after = network(clips), network(changed)
    assert not torch.allclose(before[0, 0], after[0, 0])
    torch.testing.assert_close(before[1], after[1])


@both_networks
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (250, 130)])
@pytest.mark.parametrize("frames", [None, 1, 3, 7])
def test_any_clip_length_and_size(build: Callable[..., nn.Module], size: tuple[int, int], frames: int | None) -> None:
    shape = (1, 3, *size) if frames is None else (1, frames, 3, *size)
    with torch.no_grad():
        logits = build(out_channels=2, width=8).eval()(torch.randn(shape))
    assert logits.shape == (*shape[:-3], 2, *size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@both_networks
def test_padding_repeats_the_border_and_is_cropped_off(build: Callable[..., nn.Module]) -> None:
    network = settle(build(width=8))
    clip = torch.randn(1, 2, 3, 20, 31)
    rows, columns = torch.arange(32).clamp_max(19), torch.arange(32).clamp_max(30)
    with torch.no_grad():
        torch.testing.assert_close(network(clip), network(clip[..., rows, :][..., columns])[..., :20, :31])


@both_networks
def test_channels_last_gives_the_same_logits(build: Callable[..., nn.Module]) -> None:
    network = settle(build(width=8))
    clip = torch.randn(1, 5, 3, 33, 40)
    with torch.no_grad():
        expected = network(clip)
        actual = network.to(memory_format=torch.channels_last)(clip)
    assert (actual - expected).norm() < 1e-4 * expected.norm()


@both_models
@pytest.mark.parametrize("labels", [["nerve"], ["background", "bone", "disc"]])
def test_the_loss_of_clips_teaches_every_weight(kind: type[PNSNet | FUNet], labels: list[str]) -> None:
    model = kind(labels, width=8).train()
    clips = torch.randn(2, 5, 3, 32, 48)
    masks = torch.randint(0, max(2, len(labels)), (2, 5, 32, 48), dtype=torch.uint8)
    model.training_loss(FrameBatch(clips, masks)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.ndim > 1)


@both_models
def test_stills_teach_everything_but_the_parts_between_frames(kind: type[PNSNet | FUNet]) -> None:
    network = kind(["nerve"], width=8).train().network
    network(torch.randn(2, 3, 32, 48)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(kind.INTER_FRAME), name


@both_models
def test_a_model_asks_for_clips_of_its_length_at_the_published_size(kind: type[PNSNet | FUNet]) -> None:
    model = kind(["nerve"], width=8)
    assert model.input_spec.frames == 5
    assert model.preprocess.size == (256, 448)
    other = kind(["nerve"], width=8, frames=3, preprocess=Preprocess((64, 96)))
    assert (other.input_spec.frames, other.preprocess.size) == (3, (64, 96))


@both_models
def test_published_weights_fill_the_backbone_alone(kind: type[PNSNet | FUNet], tmp_path: Path) -> None:
    model = kind(["nerve"], width=8)
    weights = {name: torch.rand(tensor.shape) for name, tensor in model.network.encoder.state_dict().items()}
    weights |= {"layer4.0.conv1.weight": torch.rand(3), "fc.weight": torch.rand(2, 2)}
    save_file(weights, tmp_path / "res2net50d.safetensors")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    conversion = model.load_encoder(tmp_path / "res2net50d.safetensors")
    assert {name for name in conversion.unused if "num_batches" not in name} == {"layer4.0.conv1.weight", "fc.weight"}
    for name, tensor in model.network.state_dict().items():
        if name.startswith("encoder.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights[name.removeprefix("encoder.")])
        else:
            assert torch.equal(tensor, before[name])


def test_under_autocast_a_coarse_map_may_leave_the_range_of_float16() -> None:
    clip, network = smooth_frames(1, 4, 3, 64, 96), PNSNetNetwork(width=16)
    seen: list[Tensor] = []
    network.decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1].abs().max()))
    with torch.no_grad():
        for block in network.inter_frame:
            block.output.weight *= 1000
        settle_on(network, clip)
        exact = network(clip)
        with torch.autocast("cpu", dtype=torch.float16):
            mixed = network(clip)
    assert min(seen) > 1e5
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
def test_it_learns_from_a_random_start_with_raw_scores() -> None:
    network = PNSNetNetwork(width=8).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    clips = smooth_frames(2, 3, 3, 64, 64)
    masks = (clips[:, :, :1] > 0).float()
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network(clips), masks)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@both_networks
def test_what_is_neither_frames_nor_clips_is_refused(build: Callable[..., nn.Module]) -> None:
    network = build(width=8).eval()
    for shape in ((3, 16, 16), (1, 0, 3, 16, 16), (1, 1, 1, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"expected frames \(B, 3, H, W\) or clips \(B, T, 3, H, W\)"):
            network(torch.zeros(shape))


@pytest.mark.parametrize(("build", "side"), [(PNSNetNetwork, 16), (FUNetNetwork, 496)])
def test_a_training_frame_that_ends_as_one_pixel_is_refused(build: Callable[..., nn.Module], side: int) -> None:
    network = build(width=8).train()
    for shape in ((1, 3, side, 8), (1, 1, 3, side, 8)):
        with pytest.raises(ValueError, match=rf"one frame of {side}x8 pixels.*at least 2 frames"):
            network(torch.randn(shape))
    assert network(torch.randn(1, 3, side + 1, 8)).shape == (1, 1, side + 1, 8)
    assert network(torch.randn(1, 2, 3, side, 8)).shape == (1, 2, 1, side, 8)


@both_models
def test_arguments_that_cannot_be_are_refused(kind: type[PNSNet | FUNet]) -> None:
    for width in (0, 12, 264, 8.0):
        with pytest.raises(ValueError, match=f"width must be a multiple of 8 from 8 to 256, found {width}"):
            kind(["nerve"], width=width)  # type: ignore[arg-type]
    for frames in (1, 65, 2.5):
        with pytest.raises(ValueError, match="frames must be a whole number from 2 to 64"):
            kind(["nerve"], width=8, frames=frames)  # type: ignore[arg-type]


def test_another_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match='aggregation must be "scores" or "softmax"'):
        PNSNet(["nerve"], width=8, aggregation="mean")  # type: ignore[arg-type]
