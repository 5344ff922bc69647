"""SPADE: its formula, its losses, its two steps, and a training that goes on as if it had never stopped."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision import SpineDataModule, list_architectures
from spinevision.hub.config import ModelFolderError
from spinevision.labels import IGNORE_INDEX
from spinevision.layers.spade import MultiScaleCritic, SpadeNorm
from spinevision.models import spade
from spinevision.models.resnet import ResNetNetwork
from spinevision.models.spade import SpadeGenerator, to_uint8
from spinevision.models.spade_losses import PerceptualLoss, critic_loss, feature_matching, generator_loss
from spinevision.phantom import write_phantoms
from spinevision.structures import FrameBatch

LABELS = ["background", "bone", "disc"]


def tiny(noise: int = 3) -> SpadeGenerator:
    torch.manual_seed(0)
    return SpadeGenerator(LABELS, size=(16, 24), width=2, depth=2, noise=noise)


def batch(count: int = 3) -> FrameBatch:
    masks = torch.randint(0, 3, (count, 16, 24)).to(torch.uint8)
    masks[:, :2] = IGNORE_INDEX
    return FrameBatch(torch.rand(count, 3, 16, 24) * 2 - 1, masks)


def test_spade_is_the_formula() -> None:
    norm = SpadeNorm(4, planes=3, hidden=5)
    x, maps = torch.randn(2, 4, 3, 5), F.one_hot(torch.randint(0, 3, (2, 9, 15)), 3).movedim(-1, 1).float()
    small = maps[:, :, 1::3, 1::3]  # the middle of every 3x3 cells
    found = norm.eval()(x, maps)  # in eval mode the weights stand still
    seen = F.conv2d(small, norm.shared.weight, norm.shared.bias, padding=1).clamp(min=0)
    gamma, beta = (F.conv2d(seen, layer.weight, layer.bias, padding=1) for layer in (norm.gamma, norm.beta))
    assert torch.allclose(found, x / (1 + 1e-5) ** 0.5 * (1 + gamma) + beta, atol=1e-6)  # a new layer's statistics: 0 and 1
    norm.norm.train()
    values = x.movedim(1, 0).flatten(1).numpy()
    values = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5)
    standard = torch.from_numpy(values).unflatten(1, (2, 3, 5)).movedim(0, 1)
    assert torch.allclose(norm(x, maps), standard * (1 + gamma) + beta, atol=1e-5)


def test_no_kernel_stretches_by_more_than_one() -> None:
    generator = SpadeGenerator(LABELS, size=(4, 4), width=2, depth=1, noise=1).train()
    kernels = [module for module in generator.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for kernel in kernels:
            kernel.parametrizations.weight.original.mul_(40)
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(100):  # each forward is one more step of the power iteration
            generator.critic(generator(masks, torch.randn(2, 1)), generator.one_hot(masks))
    generator.eval()
    assert len(kernels) == sum("original" in name for name, _ in generator.named_parameters())
    for kernel in kernels:
        largest = np.linalg.svd(kernel.weight.detach().flatten(1).numpy(), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=0.02)  # without the normalisation it is above 10


def test_losses_by_hand() -> None:
    fine, coarse = torch.tensor([2.0, 0.5]), torch.tensor([-1.0])
    fake = [torch.tensor([-3.0, 0.5]), torch.tensor([1.0])]
    # fine: mean(0, 0.5) + mean(0, 1.5) = 1; coarse: 2 + 2 = 4
    assert critic_loss([fine, coarse], fake).item() == pytest.approx((1 + 4) / 2)
    assert generator_loss(fake).item() == pytest.approx((1.25 - 1) / 2)
    real = [[torch.tensor([1.0, 2.0]), torch.tensor([0.0]), fine], [torch.tensor([4.0]), torch.tensor([1.0]), coarse]]
    drawn = [[torch.tensor([0.0, 4.0]), torch.tensor([3.0]), fake[0]], [torch.tensor([5.0]), torch.tensor([1.5]), fake[1]]]
    # fine: mean(1, 2) + 3 = 4.5; coarse: 1 + 0.5 = 1.5; scores do not count
    assert feature_matching(real, drawn).item() == pytest.approx((4.5 + 1.5) / 2)
    real[0][0].requires_grad_(True)
    assert not feature_matching(real, drawn).requires_grad


def test_the_second_critic_sees_half_the_size() -> None:
    critic = MultiScaleCritic(4, width=2, scales=2)
    pictures, maps = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    coarse = torch.cat([pictures, maps], 1)
    coarse = F.avg_pool2d(coarse, 3, 2, 1, count_include_pad=False)
    critic.eval()
    assert torch.equal(critic(pictures, maps)[1][-1], critic.critics[1](coarse)[-1])


class Step:
    """An optimiser that says when it steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, before: Any, after: Any) -> None:
        self.optimizer, self.before, self.after = optimizer, before, after

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.before()
        self.optimizer.step()
        self.after()


def test_each_step_changes_its_own_network_and_gradients_reach_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny().train()

    def weights(network: nn.Module) -> list[Tensor]:
        return [weight.detach().clone() for weight in network.parameters()]

    def same(network: nn.Module) -> bool:
        return all(map(torch.equal, weights(network), known[network]))

    known = {network: weights(network) for network in (generator.network, generator.critic)}
    order = []

    def begun(network: nn.Module) -> None:
        assert same(generator.network)
        for name, weight in network.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0 or not name.endswith("original"), name
        known[generator.critic] = weights(generator.critic)

    def done(network: nn.Module, other: nn.Module) -> None:
        order.append(network)
        assert same(other)
        assert not same(network)
        known[network] = weights(network)

    steps = [
        Step(optimizer, lambda one=one: begun(one), lambda one=one, two=two: done(one, two))
        for optimizer, one, two in zip(
            generator.configure_optimizers(),
            (generator.network, generator.critic),
            (generator.critic, generator.network),
            strict=True,
        )
    ]
    monkeypatch.setattr(generator, "optimizers", lambda: steps)
    monkeypatch.setattr(generator, "manual_backward", lambda loss: loss.backward())
    told: dict[str, Tensor] = {}
    monkeypatch.setattr(generator, "log_dict", lambda values, **_: told.update(values))
    generator.training_step(batch(), 0)
    assert order == [generator.critic, generator.network]
    assert all(weight.requires_grad for weight in generator.parameters())
    assert {*told} == {"critic", "adversarial", "feature_matching"}


# What it draws


def test_values_come_back_exactly_and_maps_are_one_hot() -> None:
    generator = tiny()
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    prepared = generator.preprocess.normalize(every)
    assert (prepared.min(), prepared.max()) == (-1, 1)
    assert torch.equal(to_uint8(prepared), every)
    maps = generator.one_hot(torch.tensor([[[0, 2, IGNORE_INDEX]]], dtype=torch.uint8))
    assert maps[0, :, 0].T.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert SpadeGenerator(["nerve"], size=(8, 8), width=1, depth=1).one_hot(torch.tensor([[[1]]])).shape == (1, 3, 1, 1)


def test_a_frame_has_the_aspect_of_its_map_and_depends_on_the_seed() -> None:
    generator = tiny()
    mask = np.random.default_rng(0).integers(0, 3, (30, 30), dtype=np.uint8)
    frame, given = generator.train().generate(mask, seed=1)
    assert frame.shape == (16, 16, 3)
    assert frame.dtype == np.uint8
    inner = generator.preprocess.resize_mask(mask)[:, 4:20].numpy()
    assert (given == inner).all()
    assert generator.training
    again, other = generator.generate(mask, seed=1)[0], generator.generate(mask, seed=2)[0]
    assert (again == frame).all()
    assert (other != frame).any()
    with pytest.raises(ValueError, match=r"holds \[7\]"):
        generator.generate(np.full((30, 30), 7, np.uint8))
    still = tiny(noise=0)
    assert (still.generate(mask, seed=1)[0] == still.generate(mask, seed=2)[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (250, 256)}, "multiples of 32 pixels, and at least 64, found \\[250, 256\\]"),
        ({"size": (32, 32)}, "at least 64"),
        ({"size": (24, 24), "depth": 4}, "multiples of 16"),
        ({"width": 0}, "width must be a whole number from 1"),
        ({"depth": 0}, "depth must be"),
        ({"noise": -1}, "noise must be"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpadeGenerator(LABELS, **arguments)


def parameters(planes: int, width: int, depth: int, noise: int) -> tuple[int, int]:
    """How many there are in all and in the discriminators, counted from the description."""

    def conv(before: int, after: int, side: int = 3, bias: bool = True) -> int:
        return before * after * side**2 + bias * after

    def norm(channels: int) -> int:
        return conv(planes, 2 * width) + 2 * conv(2 * width, channels)

    channels = [width * min(16, 2**level) for level in range(depth, -1, -1)]
    drawing = conv(planes + noise, channels[0]) + conv(channels[-1], 3)
    for before, after in zip([channels[0], *channels], channels, strict=False):
        middle = min(before, after)
        drawing += norm(before) + conv(before, middle) + norm(middle) + conv(middle, after)
        drawing += (norm(before) + conv(before, after, 1, bias=False)) if before != after else 0
    steps = [planes + 3, width, 2 * width, 4 * width, 8 * width, 1]
    judging = 2 * sum(conv(before, after, 4) for before, after in pairwise(steps))
    return drawing + judging, judging


def test_it_is_no_model_to_publish_and_has_the_stated_size() -> None:
    assert "SpadeGenerator" not in list_architectures()
    assert not hasattr(SpadeGenerator, "push_to_hub")
    generator = tiny()
    found = [sum(weight.numel() for weight in network.parameters()) for network in (generator, generator.critic)]
    assert tuple(found) == parameters(4, 2, 2, 3)
    whole, judging = parameters(5, 64, 5, 16)
    text = f"{whole:,} parameters by default with four labels, of which {judging:,} are the discriminator's"
    assert text in (spade.__doc__ or "")
    assert f"{whole:,}" in (SpadeGenerator.__doc__ or "")


@pytest.mark.slow
def test_the_perceptual_term(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in ResNetNetwork(1000).state_dict().items() if "num_batches" not in name}
    save_file(weights, tmp_path / "resnet18.safetensors")
    loss = PerceptualLoss(tmp_path / "resnet18.safetensors")
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    fake = torch.zeros_like(real, requires_grad=True)
    loss(fake, real).backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert loss(real, real).item() == 0
    assert not any(weight.requires_grad for weight in loss.parameters())
    generator = tiny()
    names = [*generator.state_dict()]
    generator.perceptual.append(loss)
    assert [*generator.state_dict()] == names
    with pytest.raises(ValueError, match="is not a file"):
        PerceptualLoss("timm/resnet18.a1_in1k")


# Checkpoints


@pytest.fixture(scope="module")
def tissue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five generated patients of two frames, with three tissues."""
    return write_phantoms(tmp_path_factory.mktemp("tissue") / "data", patients=5, frames=2, size=(24, 24), classes="tissue")


def trained(folder: Path, output: Path, epochs: int, resumed: Path | None = None) -> dict[str, Any]:
    """Train a tiny one and read its last checkpoint."""
    torch.manual_seed(5)
    generator = SpadeGenerator(["background", "nerve", "bone", "blood"], size=(16, 16), width=2, depth=2)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[ModelCheckpoint(output, filename="last", enable_version_counter=False)],
    )
    torch.manual_seed(6 if resumed is None else 7)  # where the random numbers stand when a training is resumed is by chance
    trainer.fit(generator, SpineDataModule(folder, batch_size=3, num_workers=0), ckpt_path=resumed, weights_only=True)
    found: dict[str, Any] = torch.load(output / "last.ckpt", weights_only=True)
    return found


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested records differ."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, (dict, list, tuple)):
        keys = one if isinstance(one, dict) else range(len(one))
        return [name for key in keys for name in differing(one[key], other[key], f"{path}/{key}")]
    return [] if one == other else [path]


@pytest.mark.slow
def test_a_resumed_training_is_the_same_to_the_last_bit(tissue_folder: Path, tmp_path: Path) -> None:
    whole = trained(tissue_folder, tmp_path / "whole", 4)
    half = trained(tissue_folder, tmp_path / "half", 2)
    assert differing(half["state_dict"], whole["state_dict"])
    resumed = trained(tissue_folder, tmp_path / "resumed", 4, tmp_path / "half" / "last.ckpt")
    assert resumed["spinevision"]["epochs"] == 4
    for part in ("state_dict", "optimizer_states", "spinevision"):
        assert differing(resumed[part], whole[part]) == []


@pytest.mark.slow
def test_a_checkpoint_opens_without_code(tissue_folder: Path, tmp_path: Path) -> None:
    trained(tissue_folder, tmp_path, 1)
    before = torch.get_rng_state()
    generator = SpadeGenerator.from_checkpoint(tmp_path / "last.ckpt")
    assert not generator.training
    again = SpadeGenerator.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    mask = np.zeros((16, 16), np.uint8)
    assert (generator.generate(mask)[0] == again.generate(mask)[0]).all()
    assert generator.hparams == again.hparams
    torch.set_rng_state(before)
    record = torch.load(tmp_path / "last.ckpt", weights_only=True)
    record["spinevision"]["architecture"] = "UNet"
    torch.save(record, tmp_path / "other.ckpt")
    record["spinevision"]["architecture"] = "SpadeGenerator"
    record["hyper_parameters"]["width"] = 3
    torch.save(record, tmp_path / "unfit.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:1000])
    for name, reason in (
        ("other", "it is of UNet"),
        ("unfit", "does not fit"),
        ("damaged", "can be read"),
        ("missing", "No such file"),
    ):
        with pytest.raises(ModelFolderError, match=reason):
            SpadeGenerator.from_checkpoint(tmp_path / f"{name}.ckpt")
