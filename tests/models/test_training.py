"""The training logic that all models share, from the optimiser to several processes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from spinevision import FUNet, PNSNet, PPLiteSeg, ResNetClassifier, SegFormer
from spinevision.models.base import SpineModel
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.training import TrainingSettings, build_optimizer, build_schedule
from spinevision.models.unet import UNet
from spinevision.models.unet_plus_plus import UNetPlusPlus
from spinevision.structures import FrameBatch


def loader(batches: int = 3, frames: int = 2, seed: int = 0, positive: bool = True) -> DataLoader[FrameBatch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        values = torch.randn(frames, 3, 32, 32, generator=generator)
        masks = (values[:, 0] > 0.3).to(torch.uint8) * int(positive)
        made.append(FrameBatch(values, masks, names=["frame"] * frames, groups=["patient"] * frames))
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "default_root_dir": tmp_path, **options}
        return Trainer(enable_progress_bar=False, enable_model_summary=False, **options)

    return make


def unet(**settings: Any) -> UNet:
    model = UNet(["nerve"], width=2)
    model.settings = TrainingSettings(**settings)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}


class Recorder(Callback):
    """Notes something after every training step."""

    def __init__(self, look: Callable[[Trainer, SpineModel], Any]) -> None:
        self.look, self.seen = look, list[Any]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: SpineModel, *_: object) -> None:
        self.seen.append(self.look(trainer, pl_module))


# Optimiser and schedule


@pytest.mark.parametrize(
    ("schedule", "closed_form"),
    [
        ("constant", lambda t: 1.0),
        ("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2),
        ("poly", lambda t: (1 - t) ** 0.9),
    ],
)
@pytest.mark.parametrize(("warmup_fraction", "warmup"), [(0.0, 0), (0.1, 2), (0.25, 5)])
def test_the_learning_rate_follows_the_closed_form(
    schedule: Any, closed_form: Callable[[float], float], warmup_fraction: float, warmup: int
) -> None:
    settings = TrainingSettings(schedule=schedule, warmup_fraction=warmup_fraction, learning_rate=0.1)
    optimizer = build_optimizer(nn.Linear(2, 2), settings)
    scheduler = build_schedule(optimizer, settings, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [(k + 1) / warmup for k in range(warmup)] + [closed_form(k / (20 - warmup)) for k in range(20 - warmup)]
    assert rates == pytest.approx([0.1 * factor for factor in expected])
    if schedule != "constant":
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0)  # when the last step is done


def test_the_schedule_spans_the_whole_fit(trainer: Callable[..., Trainer]) -> None:
    recorder = Recorder(lambda trainer, _: trainer.optimizers[0].param_groups[0]["lr"])
    trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[recorder]).fit(unet(warmup_fraction=0.0), loader(4), loader(1))
    after_steps = recorder.seen[1::2]  # two batches a step, four steps
    assert after_steps == pytest.approx([1e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4)])


def test_training_without_an_end_needs_a_constant_rate(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="give the Trainer max_epochs or max_steps"):
        trainer(max_epochs=-1).fit(unet(), loader(), loader(1))
    endless = trainer(max_epochs=-1, callbacks=[Recorder(lambda trainer, _: setattr(trainer, "should_stop", True))])
    endless.fit(unet(schedule="constant", warmup_fraction=0.0), loader(), loader(1))
    assert endless.global_step == 1


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_weight_decay_spares_normalisation_and_biases(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    model = unet(optimizer=name, weight_decay=0.3, learning_rate=0.2)
    optimizer = build_optimizer(model, model.settings)
    assert type(optimizer) is kind
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.3 for p in group["params"]}
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.0 for p in group["params"]}
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)}
    assert decayed == kernels
    assert spared == {id(parameter) for parameter in model.parameters()} - kernels
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}


def test_gradient_clipping_is_the_trainers_own_flag(trainer: Callable[..., Trainer]) -> None:
    class Norms(Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: SpineModel, optimizer: object) -> None:
            squares = [parameter.grad.square().sum() for parameter in pl_module.parameters() if parameter.grad is not None]
            self.seen.append(float(torch.stack(squares).sum().sqrt()))

    # Lightning clips after that hook, so plain SGD shows the clipped gradient as the change of the weights.
    model = unet(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, schedule="constant", warmup_fraction=0.0)
    before, norms = [p.detach().clone() for p in model.parameters()], Norms()
    trainer(max_steps=1, gradient_clip_val=1e-3, callbacks=[norms]).fit(model, loader(1), loader(1))
    moved = torch.stack([(p - old).square().sum() for p, old in zip(model.parameters(), before, strict=True)]).sum().sqrt()
    assert norms.seen[0] > 0.01
    assert float(moved) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss": "mse"}, "loss must be one of cross_entropy, .*found 'mse'"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, adam, sgd"),
        ({"schedule": "step"}, "schedule must be one of cosine, poly, constant"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay not below 0"),
        ({"warmup_fraction": 1.0}, "warmup_fraction must be at least 0 and below 1"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"freeze": "encoder"}, r"write \[encoder\]"),
        ({"threshold_rule": "iou"}, "threshold_rule must be one of dice, sensitivity, false_area, found 'iou'"),
        ({"threshold_rule": "sensitivity"}, "threshold_rule sensitivity needs a threshold_goal above 0.*found None"),
        ({"threshold_rule": "sensitivity", "threshold_goal": 0.0}, "at most 1.*found 0.0"),
        ({"threshold_rule": "sensitivity", "threshold_goal": 1.1}, "at most 1.*found 1.1"),
        ({"threshold_rule": "sensitivity", "threshold_goal": math.nan}, "at most 1.*found nan"),
        ({"threshold_rule": "false_area"}, "threshold_rule false_area needs a threshold_goal from 0.*found None"),
        ({"threshold_rule": "false_area", "threshold_goal": 1.0}, "below 1.*found 1.0"),
        ({"threshold_rule": "false_area", "threshold_goal": -0.1}, "below 1.*found -0.1"),
        ({"threshold_goal": 0.5}, "the threshold_rule dice takes none; leave it out"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainingSettings(**settings)


# Freezing


def test_a_frozen_part_keeps_weights_and_statistics(trainer: Callable[..., Trainer]) -> None:
    model = unet(freeze=["encoder"], ema_decay=0.7)
    before = weights(model)
    trainer(max_epochs=2).fit(model, loader(), loader(1))
    moved = changed(before, model)
    assert not {key for key in moved if key.startswith("network.encoder.")}
    assert any("running_mean" in key for key in moved)  # of the decoder
    model.train()
    assert not any(module.training for module in model.network.encoder.modules())
    assert all(module.training for module in model.network.decoder.modules())
    model.predict(torch.zeros(8, 8, 3).byte().numpy())
    assert not any(module.training for module in model.network.encoder.modules())


def test_a_later_fit_without_freezing_trains_everything(trainer: Callable[..., Trainer]) -> None:
    model = unet(freeze=("encoder.0", "head"))
    trainer().fit(model, loader(), loader(1))
    before = weights(model)
    model.settings = TrainingSettings()
    trainer().fit(model, loader(), loader(1))
    assert {"network.head.weight", "network.encoder.0.0.conv.weight", "network.encoder.0.0.norm.running_mean"} <= changed(
        before, model
    )


def test_freezing_what_is_not_there_or_everything_is_refused(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(
        ValueError, match=r"freeze names 'encodr'.*did you mean 'encoder'\? its parts are encoder, pool, decoder, head"
    ):
        trainer().fit(unet(freeze=["encodr"]), loader(), loader(1))
    with pytest.raises(ValueError, match="every parameter is frozen"):
        trainer().fit(unet(freeze=["encoder", "decoder", "head"]), loader(), loader(1))


def test_a_loaded_model_is_trained_in_training_mode(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "model")
    model = UNet.from_pretrained(tmp_path / "model")
    before = weights(model)
    trainer().fit(model, loader(), loader(1))
    assert any("running_mean" in key for key in changed(before, model))


# Averaging


def test_the_best_checkpoint_holds_the_averaged_weights(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    decay = 0.8
    model = unet(ema_decay=decay, learning_rate=0.01)
    recorder = Recorder(lambda _, model: weights(model))
    trainer(max_steps=4, callbacks=[recorder]).fit(model, loader(4), loader(1))
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    for key in ("network.head.weight", "network.encoder.0.0.conv.weight", "network.decoder.0.block.0.norm.running_var"):
        average = recorder.seen[0][key]
        for step in recorder.seen[1:]:
            average = decay * average + (1 - decay) * step[key]
        torch.testing.assert_close(checkpoint["state_dict"][key], average)
        assert (average - recorder.seen[-1][key]).abs().max() > 1e-5  # not the last weights
        torch.testing.assert_close(model.state_dict()[key], average)
        torch.testing.assert_close(SpineModel.from_checkpoint(tmp_path / "checkpoints" / "best.ckpt").state_dict()[key], average)


def test_averaging_changes_no_constant(trainer: Callable[..., Trainer]) -> None:
    model = unet(ema_decay=0.9)
    mean = model.preprocess.mean.clone()
    trainer(max_epochs=4).fit(model, loader(), loader(1))
    assert torch.equal(model.preprocess.mean, mean)


# Checkpoints and callbacks


def test_best_is_the_checkpoint_of_the_highest_dice(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    record: list[tuple[float, dict[str, torch.Tensor], dict[str, Any]]] = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: SpineSegmenter) -> None:
            record.append((float(trainer.callback_metrics["val/dice"]), weights(pl_module), pl_module.operating_point()))

    run = trainer(max_epochs=4, callbacks=[Look()])
    run.fit(unet(learning_rate=0.05, schedule="constant"), loader(), loader(2, seed=1))
    best = max(record, key=lambda entry: entry[0])
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert len({dice for dice, *_ in record}) > 1
    assert all(torch.equal(tensor, best[1][key]) for key, tensor in checkpoint["state_dict"].items())
    assert checkpoint["spinevision"]["operating_point"] == best[2]
    assert run.checkpoint_callback.best_model_score == pytest.approx(best[0])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_rule_of_the_user_is_kept_and_ours_stays_away(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    own = [
        ModelCheckpoint(dirpath=tmp_path / "a", monitor="val/loss"),
        ModelCheckpoint(dirpath=tmp_path / "b", every_n_train_steps=2, save_top_k=-1),
        ModelCheckpoint(save_last=True),
    ]
    for keeper in own:
        run = trainer(callbacks=[keeper])
        run.fit(unet(), loader(), loader(1))
        assert run.checkpoint_callbacks == [keeper]
    assert (tmp_path / "b" / "epoch=0-step=2.ckpt").is_file()
    assert not list(tmp_path.rglob("best.ckpt"))


def test_no_checkpoints_where_none_are_wanted(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    run = trainer(enable_checkpointing=False)
    run.fit(unet(ema_decay=0.5), loader(), loader(1))
    assert not run.checkpoint_callbacks
    assert len([callback for callback in run.callbacks if isinstance(callback, WeightAveraging)]) == 1
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_same_trainer_fits_twice_with_one_rule(trainer: Callable[..., Trainer]) -> None:
    run, model = trainer(), unet(ema_decay=0.5)
    run.fit(model, loader(), loader(1))
    run.fit_loop.max_epochs = 2
    run.fit(model, loader(), loader(1))
    assert len(run.checkpoint_callbacks) == 1
    assert len([callback for callback in run.callbacks if isinstance(callback, WeightAveraging)]) == 1


def test_a_fit_without_validation_trains_and_keeps_the_weights(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = unet()
    before = weights(model)
    trainer().fit(model, loader())
    assert "network.head.weight" in changed(before, model)
    assert model.threshold == 0.5
    assert SpineModel.from_checkpoint(tmp_path / "checkpoints" / "last.ckpt").threshold == 0.5


def test_a_resumed_fit_ends_as_an_unbroken_one(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = unet()
    start = weights(whole)
    trainer(max_steps=6, max_epochs=-1, default_root_dir=tmp_path / "a").fit(whole, loader(), loader(1))
    part = unet()
    part.load_state_dict(start)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: SpineModel) -> None:
            trainer.should_stop = True

    trainer(max_steps=6, max_epochs=-1, default_root_dir=tmp_path / "b", callbacks=[Stop()]).fit(part, loader(), loader(1))
    resumed = unet()
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    trainer(max_steps=6, max_epochs=-1, default_root_dir=tmp_path / "b").fit(
        resumed, loader(), loader(1), ckpt_path=last, weights_only=True
    )
    assert not changed(weights(whole), resumed)


# The threshold


def test_the_threshold_is_chosen_on_validation_and_stored_everywhere(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model, validation = unet(), loader(2, seed=1)
    trainer().fit(model, loader(), validation)
    assert model.threshold is not None
    assert model.threshold != 0.5
    assert model.temperature != 1
    assert model.threshold_rule == "the nearest to 0.5 within one standard error of the best pooled Dice on validation frames"
    logits = torch.cat([model.eval()(batch.frames) for batch in validation.dataset]).detach() / model.temperature
    truth = torch.cat([batch.masks for batch in validation.dataset])

    def dice(threshold: float) -> float:
        predicted = logits[:, 0].sigmoid() >= threshold
        return float(2 * (predicted & (truth == 1)).sum() / (predicted.sum() + (truth == 1).sum()))

    assert dice(model.threshold) >= max(dice(float(t)) for t in torch.linspace(0.01, 0.99, 197)) - 1e-3
    assert SpineModel.from_checkpoint(tmp_path / "checkpoints" / "best.ckpt").operating_point() == model.operating_point()
    model.save_pretrained(tmp_path / "model")
    assert SpineModel.from_pretrained(tmp_path / "model").operating_point() == model.operating_point()


def test_every_validation_starts_its_scores_afresh(trainer: Callable[..., Trainer]) -> None:
    model, run = unet(learning_rate=0.05, schedule="constant"), trainer(max_epochs=3)
    run.fit(model, loader(), loader(2, seed=1))
    last = dict(run.callback_metrics)
    model.threshold = 0.5
    alone = trainer().validate(model, loader(2, seed=1), verbose=False)[0]
    for name in ("val/dice", "val/iou", "val/dice_pooled", "val/loss"):
        assert alone[name] == pytest.approx(float(last[name]), abs=1e-6)


def test_an_evaluation_or_a_sanity_check_chooses_no_threshold(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = unet(ema_decay=0.5)
    model.threshold = 0.123
    trainer().validate(model, loader(2), verbose=False)
    trainer().test(model, loader(2), verbose=False)
    assert not list(tmp_path.rglob("*.ckpt"))
    trainer(check_val_every_n_epoch=5, num_sanity_val_steps=2).fit(model, loader(), loader(2))
    assert model.threshold == 0.123


def test_validation_without_the_class_keeps_the_threshold(trainer: Callable[..., Trainer]) -> None:
    model = unet()
    trainer().fit(model, loader(), loader(1, positive=False))
    assert model.threshold == 0.5
    assert model.threshold_rule is None


def test_a_test_scores_the_masks_that_predict_gives(trainer: Callable[..., Trainer]) -> None:
    model = unet()
    everything, nothing = 1e-6, 1 - 1e-6
    for threshold in (everything, nothing):
        model.threshold = threshold
        scores = trainer().test(model, loader(2), verbose=False)[0]
        share = float(torch.cat([batch.masks for batch in loader(2).dataset]).float().mean())
        expected = 2 * share / (1 + share) if threshold == everything else 0.0
        assert scores["test/dice_pooled"] == pytest.approx(expected, abs=1e-6)
    assert {"test/loss", "test/dice", "test/iou", "test/dice_pooled"} == set(scores)


# Processes

PROCESSES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("UNet", {"width": 4}, {"freeze": ["encoder.0"]}, "dice"),
    ("UNetPlusPlus", {"width": 4, "deep_supervision": True, "prune": 2}, {}, "dice"),
    ("PPLiteSeg", dict(PPLiteSeg.SMALL), {"freeze": ["encoder"]}, "dice"),
    ("SegFormer", dict(SegFormer.SMALL), {"encoder_learning_rate_factor": 0.1}, "dice"),
    ("PNSNet", dict(PNSNet.SMALL), {}, "dice"),
    ("PNSNet", dict(PNSNet.SMALL), {"stills": True}, "dice"),
    ("FUNet", dict(FUNet.SMALL), {"stills": True}, "dice"),
    ("ResNetClassifier", dict(ResNetClassifier.SMALL), {"freeze": ["conv1", "bn1"]}, "auroc"),
]
"""One of each kind that trains in its own way: its arguments, its settings, and a score."""


def fitting(model: SpineModel, seed: int) -> DataLoader[FrameBatch]:
    """Two batches as the model takes them: frames or clips, masks or presence."""
    batches = []
    for batch in loader(2, frames=4, seed=seed).dataset:
        if model.input_spec.target == "presence":
            presence = (batch.frames.flatten(1).mean(1, keepdim=True) > 0).to(torch.uint8)
            batch = FrameBatch(batch.frames, None, presence, batch.names, batch.groups)
        elif model.input_spec.frames is not None:
            frames, masks = batch.frames.unflatten(0, (2, 2)), batch.masks.unflatten(0, (2, 2))
            batch = FrameBatch(frames, masks, names=batch.names, groups=batch.groups[:2])
        batches.append(batch)
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


_TWO_PROCESSES = """
import sys, json, warnings, logging
warnings.filterwarnings("ignore")
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from lightning.pytorch import Trainer
from test_training import PROCESSES, TrainingSettings, Path, fitting
from spinevision.models import find_architecture

out = Path(sys.argv[2])
torch.manual_seed(0)
results = []
for name, arguments, settings, monitored in PROCESSES:
    model = find_architecture(name)(["nerve"], **arguments)
    model.settings = TrainingSettings(ema_decay=0.5, **settings)
    trainer = Trainer(max_epochs=1, strategy="ddp", devices=2, accelerator="cpu", logger=False, default_root_dir=out,
                      enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
    # each process has its own training and validation batches
    trainer.fit(model, fitting(model, seed=trainer.global_rank), fitting(model, seed=5 + trainer.global_rank))
    weights = float(sum(p.double().abs().sum() for p in model.parameters()))
    scores = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    # all frames of both, in one process, with the weights of the end
    single = find_architecture(name)(["nerve"], **arguments).eval()
    single.load_state_dict(model.state_dict())
    single.settings = model.settings
    alone = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    frames = [batch for seed in (5, 6) for batch in fitting(model, seed=seed).dataset]
    with torch.no_grad():
        single.trainer = alone
        for batch in frames:
            single.update_scores(batch)
        expected = single.finish_scores()
    results.append([name, weights, [model.threshold, model.temperature], scores["val/" + monitored], expected[monitored]])
(out / f"rank{trainer.global_rank}.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_two_processes_train_every_kind_of_model_alike(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # weights, threshold and every score, to the last bit
    assert [entry[0] for entry in first] == [name for name, *_ in PROCESSES]
    for _, _, (threshold, temperature), score, alone in first:
        assert 0 < threshold < 1
        assert 0.05 <= temperature <= 20
        assert score == pytest.approx(alone, abs=1e-6)


# Compilation


def shallow() -> UNet:
    """A U-Net in all but its network, which compiles in a moment."""
    model = unet()
    model.network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    return model


def deep() -> UNetPlusPlus:
    return UNetPlusPlus(["nerve"], width=2, deep_supervision=True)


@pytest.mark.parametrize(
    ("make", "methods"), [(shallow, ["forward"]), pytest.param(deep, ["forward", "supervise"], marks=pytest.mark.slow)]
)
def test_a_compiled_fit_gives_the_weights_of_a_plain_one(
    make: Callable[[], SpineModel], methods: list[str], trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    real = torch.compile

    def without_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(function.__name__)
        return real(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_compiler)
    models = [make(), make()]
    models[1].load_state_dict(models[0].state_dict())
    torch.compiler.reset()
    for model, compile_it in zip(models, (False, True), strict=True):
        model.settings = TrainingSettings(compile=compile_it, ema_decay=0.9, optimizer="sgd")  # Adam divides by rounding noise
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        trainer(max_steps=2).fit(model, loader(2), loader(1))
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > before) == compile_it
    assert compiled == methods
    assert list(models[1].state_dict()) == list(models[0].state_dict())
    for key, tensor in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[key], tensor, rtol=1e-4, atol=1e-5)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    models[1].predict(torch.zeros(9, 9, 3).byte().numpy())  # after the fit frames of any size go through the plain network
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs the compiler g++; the test above compiles without one")
def test_a_fit_compiled_by_inductor_trains(trainer: Callable[..., Trainer]) -> None:
    model = shallow()
    model.settings = TrainingSettings(compile=True)
    before = weights(model)
    trainer(max_steps=1).fit(model, loader(1), loader(1))
    torch.compiler.reset()
    assert "network.0.weight" in changed(before, model)


# Precision


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_keeps_weights_and_losses_in_float32(precision: Any, trainer: Callable[..., Trainer]) -> None:
    model = unet()
    losses = Recorder(lambda trainer, _: trainer.callback_metrics["train/loss"])
    trainer(precision=precision, callbacks=[losses]).fit(model, loader(), loader(1))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.seen)


def test_class_weights_change_the_loss_and_no_state(trainer: Callable[..., Trainer]) -> None:
    batch = loader(1).dataset[0]
    plain, weighted = unet(loss="cross_entropy"), unet(loss="cross_entropy", class_weights=[5.0])
    weighted.load_state_dict(plain.state_dict())
    assert float(weighted.training_loss(batch)) > float(plain.training_loss(batch))
    trainer().fit(weighted, loader(), loader(1))
    plain.load_state_dict(weighted.state_dict())  # strict
    with pytest.raises(ValueError, match="class_weights must be 1 positive"):
        trainer().fit(unet(class_weights=[1.0, 2.0]), loader(), loader(1))
