"""The U-Net quartet and U-Net++: sizes, wiring, gates, recurrence, and what every pure network promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from network_checks import count, settle
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.layers.attention_gates import AttentionGate, GridAttentionGate
from spinevision.layers.conv import DoubleConv
from spinevision.layers.recurrent import RecurrentConv
from spinevision.models.attention_unet import AttentionUNetNetwork
from spinevision.models.r2unet import AR2UNetNetwork, R2UNetNetwork
from spinevision.models.unet import UNetNetwork
from spinevision.models.unet_plus_plus import UNetPlusPlusNetwork

SMALL: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNetNetwork(width=4, out_channels=2),
    "attention": lambda: AttentionUNetNetwork(width=4, out_channels=2),
    "grid": lambda: AttentionUNetNetwork(width=4, out_channels=2, attention="grid"),
    "r2": lambda: R2UNetNetwork(width=4, out_channels=2),
    "r2_separate": lambda: R2UNetNetwork(width=4, out_channels=2, recurrent_kernel="separate"),
    "ar2": lambda: AR2UNetNetwork(width=4, out_channels=2),
    "plus_plus": lambda: UNetPlusPlusNetwork(width=4, out_channels=2),
    "plus_plus_deep": lambda: UNetPlusPlusNetwork(width=4, out_channels=2, deep_supervision=True),
    "plus_plus_pruned": lambda: UNetPlusPlusNetwork(width=4, out_channels=2, deep_supervision=True, prune=2),
}
every_network = pytest.mark.parametrize("name", SMALL)
not_by_default = pytest.mark.parametrize("name", ["grid", "r2_separate", "plus_plus_deep", "plus_plus_pruned"])
"""What a model makes of its default arguments is compiled and exported in ``test_contract.py``."""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(name: str) -> nn.Module:
    return SMALL[name]()


def count_calls(network: nn.Module, kind: type[nn.Module], run: Callable[[], object]) -> int:
    calls: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: calls.append(m)) for m in network.modules() if isinstance(m, kind)]
    run()
    for hook in hooks:
        hook.remove()
    return len(calls)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (UNetNetwork, 34_527_041),
        (AttentionUNetNetwork, 34_878_573),
        (R2UNetNetwork, 39_091_393),
        (AR2UNetNetwork, 39_442_925),
        (lambda: R2UNetNetwork(recurrence=5), 39_091_393),
        (UNetPlusPlusNetwork, 9_163_329),
        (lambda: UNetPlusPlusNetwork(deep_supervision=True), 9_163_428),
    ],
)
def test_paper_size_has_the_published_parameter_count(build: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        network = build()
    assert count(network) == parameters


@every_network
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (17, 250), (32, 16)])
def test_any_size_in_and_the_same_size_out(name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = make(name).eval()(torch.randn(1, 3, *size))
    assert logits.shape == (1, 2, *size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_network
def test_padding_repeats_the_border_and_is_cropped_off(name: str) -> None:
    network = settle(make(name))
    x = torch.randn(1, 3, 20, 31)
    rows, columns = torch.arange(32).clamp_max(19), torch.arange(32).clamp_max(30)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(x[:, :, rows][..., columns])[..., :20, :31])


@every_network
def test_every_weight_gets_a_gradient(name: str) -> None:
    network = make(name).train()
    x = torch.randn(2, 3, 32, 32)
    outputs = network.supervise(x).logits if hasattr(network, "supervise") else (network(x),)
    sum(((logits - 1) ** 2).mean() for logits in outputs).backward()  # type: ignore[union-attr]
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    # a bias before batch normalisation has zero gradient but for rounding; a kernel must not
    assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.ndim == 4)


@every_network
def test_one_tiny_training_frame_is_refused_in_one_sentence(name: str) -> None:
    network = make(name).train()
    with pytest.raises(ValueError, match=r"one frame of 16x9 pixels.*at least 2 frames.*more than 16 pixels"):
        network(torch.randn(1, 3, 16, 9))
    assert network(torch.randn(2, 3, 16, 9)).shape == (2, 2, 16, 9)
    assert network(torch.randn(1, 3, 17, 9)).shape == (1, 2, 17, 9)
    assert network.eval()(torch.randn(1, 3, 16, 9)).shape == (1, 2, 16, 9)


@pytest.mark.slow
@not_by_default
def test_compiles_as_one_graph(name: str) -> None:
    network = settle(make(name))
    x = torch.randn(1, 3, 33, 32)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ar2", "plus_plus_deep"])
def test_trains_when_compiled(name: str) -> None:
    network = make(name).train()
    torch.compiler.reset()
    step = network.supervise if hasattr(network, "supervise") else network
    out = torch.compile(step, fullgraph=True, backend="aot_eager")(torch.randn(2, 3, 32, 32))
    logits = out if isinstance(out, Tensor) else out.logits[-1]
    logits.square().mean().backward()
    assert next(network.parameters()).grad is not None


@not_by_default
def test_exports_with_a_fixed_size(name: str) -> None:
    network = settle(make(name))
    x = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


@pytest.mark.parametrize(
    "name", [pytest.param("unet", marks=pytest.mark.slow), "grid", pytest.param("plus_plus_pruned", marks=pytest.mark.slow)]
)
def test_exports_with_an_open_size_in_steps_of_the_stride(name: str) -> None:
    network = settle(make(name))
    height, width = (16 * torch.export.Dim(side, min=2, max=64) for side in ("h", "w"))
    shapes = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    exported = torch.export.export(network, (torch.randn(2, 3, 32, 80),), dynamic_shapes=shapes).module()
    x = torch.randn(3, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x))


@every_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_finite_float32_logits(name: str, dtype: torch.dtype) -> None:
    network = settle(make(name))
    x = torch.randn(1, 3, 32, 33)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        logits = network(x)
    with torch.no_grad():
        exact = network(x)
    assert logits.dtype == torch.float32
    assert (logits - exact).norm() < 0.05 * exact.norm()


@every_network
def test_half_precision_weights_give_float32_logits(name: str) -> None:
    logits = make(name).eval().to(torch.bfloat16)(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_network
def test_channels_last_gives_the_same_logits(name: str) -> None:
    network = settle(make(name))
    x = torch.randn(2, 3, 33, 32)
    with torch.no_grad():
        expected = network(x)
        actual = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@every_network
def test_no_activation_works_in_place(name: str) -> None:
    assert not [m for m in make(name).modules() if getattr(m, "inplace", False)]


@pytest.mark.parametrize("width", [0, 1025, 8.5])
@pytest.mark.parametrize("build", [UNetNetwork, AttentionUNetNetwork, R2UNetNetwork, AR2UNetNetwork, UNetPlusPlusNetwork])
def test_a_width_out_of_range_is_refused(build: Callable[..., nn.Module], width: float) -> None:
    with pytest.raises(ValueError, match="width must be a whole number from 1 to 1024"):
        build(width=width)


def test_width_one_works() -> None:
    assert AR2UNetNetwork(width=1).eval()(torch.randn(1, 3, 16, 16)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("build", [R2UNetNetwork, AR2UNetNetwork])
def test_bad_recurrence_is_refused(build: Callable[..., nn.Module]) -> None:
    for recurrence in (-1, 9, 1.5):
        with pytest.raises(ValueError, match="recurrence must be a whole number from 0 to 8"):
            build(width=1, recurrence=recurrence)
    with pytest.raises(ValueError, match='"shared" or "separate"'):
        build(width=1, recurrent_kernel="both")
    with pytest.raises(ValueError, match='"same_resolution" or "grid"'):
        AttentionUNetNetwork(width=1, attention="soft")  # type: ignore[arg-type]


def test_unet_against_a_forward_written_by_hand() -> None:
    network = settle(UNetNetwork(width=3))
    x = torch.randn(2, 3, 32, 48)
    e1 = network.encoder[0](x)
    e2 = network.encoder[1](F.max_pool2d(e1, 2))
    e3 = network.encoder[2](F.max_pool2d(e2, 2))
    e4 = network.encoder[3](F.max_pool2d(e3, 2))
    y = network.encoder[4](F.max_pool2d(e4, 2))
    for level, skip in zip(network.decoder, (e4, e3, e2, e1), strict=True):
        brick = level.up[1]
        up = F.relu(brick.norm(brick.conv(y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))))
        y = level.block(torch.cat([skip, up], dim=1))
    torch.testing.assert_close(network(x), network.head(y))


def test_all_four_skips_are_gated_at_their_own_resolution_and_three_on_the_grid() -> None:
    x = torch.randn(1, 3, 32, 32)
    same, grid = AttentionUNetNetwork(width=2).eval(), AttentionUNetNetwork(width=2, attention="grid").eval()
    assert count_calls(same, AttentionGate, lambda: same(x)) == 4
    assert count_calls(grid, GridAttentionGate, lambda: grid(x)) == 3
    assert grid.decoder[-1].gate is None
    seen: dict[str, tuple[int, ...]] = {}
    for name, network in (("same", same), ("grid", grid)):
        network.decoder[1].gate.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: tuple(args[1].shape)}))
        network(x)
    assert seen == {"same": (1, 8, 8, 8), "grid": (1, 16, 4, 4)}  # skip: 8 channels of 8x8


def test_a_closed_gate_shuts_the_skip_off_but_not_the_decoder() -> None:
    network = settle(AttentionUNetNetwork(width=2))
    seen: list[Tensor] = []
    for level in network.decoder:
        nn.init.constant_(level.gate.psi.norm.bias, -1e4)
        level.block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(torch.randn(1, 3, 32, 32))
    for joined in seen:
        skip, up = joined.chunk(2, dim=1)
        assert skip.abs().max() == 0
        assert up.abs().max() > 0


def test_a_separate_kernel_adds_one_kernel_to_each_recurrent_convolution() -> None:
    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert size(RecurrentConv(6, 2, "separate")) - size(RecurrentConv(6, 2)) == 6 * 6 * 9
    assert size(RecurrentConv(6, 0, "separate")) == size(RecurrentConv(6, 0))  # nothing to recur, no idle kernel
    extra = size(R2UNetNetwork(width=2, recurrent_kernel="separate")) - size(R2UNetNetwork(width=2))
    assert extra == 2 * 9 * (2 * (2**2 + 4**2 + 8**2 + 16**2) + 32**2)


def plus_plus_by_hand(net: UNetPlusPlusNetwork, x: Tensor) -> list[Tensor]:
    def up(t: Tensor) -> Tensor:
        return F.interpolate(t, size=(2 * t.shape[2], 2 * t.shape[3]), mode="bilinear", align_corners=True)

    def node(i: int, j: int, *parts: Tensor) -> Tensor:
        return net.nodes[f"{i}_{j}"](torch.cat(parts, dim=1))

    x00 = net.encoder[0](x)
    x10 = net.encoder[1](F.max_pool2d(x00, 2))
    x20 = net.encoder[2](F.max_pool2d(x10, 2))
    x30 = net.encoder[3](F.max_pool2d(x20, 2))
    x40 = net.encoder[4](F.max_pool2d(x30, 2))
    x01, x11, x21, x31 = node(0, 1, x00, up(x10)), node(1, 1, x10, up(x20)), node(2, 1, x20, up(x30)), node(3, 1, x30, up(x40))
    x02, x12, x22 = node(0, 2, x00, x01, up(x11)), node(1, 2, x10, x11, up(x21)), node(2, 2, x20, x21, up(x31))
    x03, x13 = node(0, 3, x00, x01, x02, up(x12)), node(1, 3, x10, x11, x12, up(x22))
    x04 = node(0, 4, x00, x01, x02, x03, up(x13))
    return [x01, x02, x03, x04]


def test_unet_plus_plus_against_wiring_written_by_hand() -> None:
    network = settle(UNetPlusPlusNetwork(width=2, deep_supervision=True))
    x = torch.randn(2, 3, 32, 48)
    expected = [head(y) for head, y in zip(network.heads, plus_plus_by_hand(network, x), strict=True)]
    logits, weights = network.supervise(x)
    assert weights == (0.25, 0.25, 0.25, 0.25)
    for actual, wanted in zip(logits, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(network(x), expected[-1])

    single = settle(UNetPlusPlusNetwork(width=2))
    torch.testing.assert_close(single(x), single.heads[0](plus_plus_by_hand(single, x)[-1]))
    assert single.supervise(x).weights == (1.0,)


def test_a_pruned_network_gives_the_earlier_head_and_runs_fewer_blocks() -> None:
    x = torch.randn(1, 3, 21, 40)
    full = settle(UNetPlusPlusNetwork(width=2, deep_supervision=True))
    heads = full.supervise(x).logits
    blocks = []
    for k in (1, 2, 3):
        pruned = UNetPlusPlusNetwork(width=2, deep_supervision=True, prune=k).eval()
        pruned.load_state_dict(full.state_dict())
        torch.testing.assert_close(pruned(x), heads[k - 1])
        blocks.append(count_calls(pruned, DoubleConv, lambda network=pruned: network(x)))
    assert [*blocks, count_calls(full, DoubleConv, lambda: full(x))] == [3, 6, 10, 15]


def test_bad_pruning_is_refused() -> None:
    with pytest.raises(ValueError, match="needs deep_supervision=True"):
        UNetPlusPlusNetwork(width=1, prune=2)
    for prune in (0, 4):
        with pytest.raises(ValueError, match="prune must be 1, 2, 3 or None"):
            UNetPlusPlusNetwork(width=1, deep_supervision=True, prune=prune)
