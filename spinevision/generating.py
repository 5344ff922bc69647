"""A generator of training frames, trained on the train part of a dataset: its run folder, its samples, its resumption."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Generator
from torch.utils.data import DataLoader, DistributedSampler

from spinevision.augment import AugmentSettings
from spinevision.data.datamodule import SpineDataModule
from spinevision.data.dataset import Feed, PairReader
from spinevision.data.manifest import DatasetError, Manifest, Row, Unit
from spinevision.data.wording import counted, listed
from spinevision.files import write_text
from spinevision.images import contact_sheet, mask_to_display, write_image
from spinevision.labels import MaskCodes
from spinevision.models.spade import SpadeGenerator, read_checkpoint
from spinevision.models.spade_losses import PerceptualLoss
from spinevision.recipes import UsageError
from spinevision.runs import RunSplits, clear_run, find_device, read_splits, refuse_used, write_splits
from spinevision.tables import safe_cell, write_table

CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Where a run keeps its generator."""

# Geometry alone: a frame of other colours would teach the generator colours that no camera has shown.
_AUGMENT = AugmentSettings(
    rotation_degrees=15.0,
    scale=(0.9, 1.1),
    translation=0.05,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    blur=0,
    noise=0,
    lighting=0,
)
_SAMPLES = 4
_PICTURES = 20
"""How often in a training the samples are drawn."""


@dataclass(frozen=True)
class GeneratorSettings:
    """What a training of a generator begins with and is continued with; plain data, kept in ``config.yaml``.

    Args:
        data: dataset folder or Hub id.
        splits: run folder whose parts are taken; None divides the dataset as ``spinevision fit`` does.
        split_by: ``patient`` or ``sequence``; None takes the coarsest known. Not together with ``splits``.
        fractions: shares of frames for train, validation and test. Not together with ``splits``.
        seed: of the split, of the first weights, of the order of frames and of the random vectors.
        size: height and width of generated frames (pixels).
        width: see :class:`spinevision.models.spade.SpadeGenerator`.
        batch_size: frames a step; the paper has 32, this is ours.
        learning_rate: of the generator; the default is the paper's, and 4e-4, PhotoPen's, gets further in a short training.
        perceptual: file with the weights of ResNet-18 for the perceptual term; None leaves it off.
    """

    data: str
    splits: str | None = None
    split_by: Unit | None = None
    fractions: tuple[float, float, float] = (0.65, 0.175, 0.175)
    seed: int = 0
    size: tuple[int, int] = (256, 256)
    width: int = 64
    batch_size: int = 8
    learning_rate: float = 1e-4
    perceptual: str | None = None


def train_generator(
    settings: GeneratorSettings,
    output: Path,
    *,
    epochs: int,
    resume: bool = False,
    workers: int | None = None,
    device: str | None = None,
) -> str:
    """Train a SPADE generator on the train part of a dataset and leave a run folder; frames that were made are left out.

    The folder holds ``config.yaml`` and ``splits.csv``, and after every epoch ``checkpoints/last.ckpt`` and ``metrics.csv`` (mean
    losses of each epoch); twenty times in a training ``samples.png`` is drawn: some training frames, their label maps, and what the
    generator makes of these maps. It holds frames of patients, and the checkpoint can reproduce them.

    Args:
        settings: what to train on and how.
        output: a new folder; of a training to be continued, its folder.
        epochs: in all.
        resume: go on from the last checkpoint, with the same settings; on a processor as if it had never stopped, to the last bit.
        workers: loader processes, which change nothing but the speed; None shares the processor cores.
        device: None takes a GPU where there is one.

    Returns:
        What was trained, for people.

    Raises:
        UsageError: a folder in use, other settings than those of the training to be continued, or losses that are not numbers.
        DatasetError: data that cannot be used.
        KeyboardInterrupt: training was interrupted; the message says what was kept.
    """
    if epochs < 1:
        raise UsageError(f"epochs must be at least 1, found {epochs}")
    target, checkpoint = find_device(device), output / CHECKPOINT
    if resume:
        _check_resumed(settings, output, epochs)
    else:
        refuse_used(output)
    for name in ("lightning.pytorch", "lightning.fabric"):  # its advice to programmers
        logging.getLogger(name).setLevel(logging.WARNING)
    seed_everything(settings.seed, verbose=False)
    data = _data_of(settings, workers)
    generator = SpadeGenerator(data.labels, size=settings.size, width=settings.width, learning_rate=settings.learning_rate)
    if settings.perceptual:
        generator.perceptual.append(PerceptualLoss(settings.perceptual))
    if resume:
        _check_same_data(data, output)
    else:
        write_splits(output / "splits.csv", data.splits)
        write_text(output / "config.yaml", yaml.safe_dump(_plain(settings), sort_keys=False))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator=target.type,
        devices=[target.index or 0] if target.type == "cuda" else 1,
        logger=False,
        default_root_dir=output,
        limit_val_batches=0,
        enable_model_summary=False,
        callbacks=[
            # Not save_last, which saves after an epoch only where another checkpoint was saved too.
            ModelCheckpoint(output / CHECKPOINT.parent, filename=CHECKPOINT.stem, enable_version_counter=False),
            _Record(output, max(1, epochs // _PICTURES)),
        ],
    )
    try:
        trainer.fit(generator, data, ckpt_path=checkpoint if resume else None, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C and SIGTERM
        if not trainer.interrupted:
            raise
        kept = f"go on with --resume, {checkpoint} is kept" if checkpoint.exists() else "no epoch was complete, so nothing was kept"
        raise KeyboardInterrupt(kept) from None
    finally:
        if not checkpoint.exists():
            clear_run(output)
    learnt = data.rows("train")
    return (
        f"generator for {', '.join(generator.labels)}, {epochs} epochs on {counted(len(learnt), 'training frame')} of "
        f"{counted(len(data.splits.groups('train')), data.splits.unit)}: {checkpoint}\n"
        f"look at {output / 'samples.png'} before you use it; both can show patients, so keep them where the frames may lie"
    )


def _plain(settings: GeneratorSettings) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def generator_settings(given: Mapping[str, Any], output: Path, resume: bool) -> GeneratorSettings:
    """The settings of a command line, in which None stands for what was not given: as the training began, or the default.

    Raises:
        UsageError: nothing to go on with.
    """
    known = _began(output) if resume else {}
    chosen = {**known, **{name: value for name, value in given.items() if value is not None}}
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return GeneratorSettings(**plain)


def _began(output: Path) -> dict[str, Any]:
    """The settings that a training began with, as plain data."""
    try:
        known = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(known, dict) or {*known} != {entry.name for entry in fields(GeneratorSettings)}:
            raise ValueError("config.yaml is of something else")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = "it has no config.yaml" if isinstance(error, FileNotFoundError) else str(error)
        raise UsageError(f"{output} holds no generator to go on with ({reason}); leave --resume out") from error
    return known


def _check_resumed(settings: GeneratorSettings, output: Path, epochs: int) -> None:
    for name, value in _began(output).items():
        if _plain(settings)[name] != value:
            now = _plain(settings)[name]
            raise UsageError(f"the training in {output} began with {name} {value}, now it is {now}; give the same options")
    done = read_checkpoint(output / CHECKPOINT)["spinevision"]["epochs"]
    if done >= epochs:
        raise UsageError(f"{output} has {counted(done, 'epoch')} already; ask for more with --epochs")


def _check_same_data(data: SpineDataModule, output: Path) -> None:
    """Refuse to go on with other frames, parts or classes than those a training began with."""
    unit = data.splits.unit
    parts = {(safe_cell(row.name), safe_cell(row.group(unit))): part for part, rows in data.splits.parts.items() for row in rows}
    labels = read_checkpoint(output / CHECKPOINT)["hyper_parameters"]["labels"]
    if read_splits(output / "splits.csv").parts != parts or labels != [*data.labels]:
        raise UsageError(
            f"{data.root} holds other frames, parts or classes than when {output} began; train anew into another folder"
        )


class _Frames(SpineDataModule):
    """Training frames in an order that seed and epoch alone decide; the loader draws no random number that training uses."""

    def _sampler(self, part: str, feed: Feed) -> DistributedSampler:
        sampler: DistributedSampler = DistributedSampler(feed, num_replicas=1, rank=0, seed=self.seed)  # type: ignore[arg-type]
        assert self.trainer is not None
        # Lightning does so too, but of a resumed training after the workers have begun; its current_epoch is one behind here.
        sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return sampler

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        loader = super().train_dataloader()
        loader.generator = Generator()  # else it draws a seed for its workers: at the first epoch, at every one or when resumed
        return loader


def _data_of(settings: GeneratorSettings, workers: int | None) -> SpineDataModule:
    """The dataset without frames that were made, divided anew or as a run divided it."""
    run = None if settings.splits is None else splits_of(settings.splits)
    if run and (settings.split_by or settings.fractions != GeneratorSettings.fractions):
        raise UsageError("the parts come from --splits, so leave --split-by and --fractions out")
    unit = run.unit if run else settings.split_by
    data = _Frames(settings.data, unit, settings.fractions, settings.seed, settings.batch_size, workers, augment=_AUGMENT)
    data.manifest = _real(data.manifest)
    if run is None:
        return data
    parts = run_parts(data.manifest, run, str(settings.splits))
    rows, answered = (
        tuple(replace(row, part=parts[row.name]) for row in some) for some in (data.manifest.rows, data.manifest.answered)
    )
    data.manifest = replace(data.manifest, rows=rows, answered=answered)
    return data


def _real(manifest: Manifest) -> Manifest:
    rows, answered = (tuple(row for row in some if not row.made) for some in (manifest.rows, manifest.answered))
    if not rows and not answered:
        raise DatasetError(f"every frame of {manifest.source} was made from others; give the dataset that it was made from")
    return replace(manifest, rows=rows, answered=answered)


class _Record(Callback):
    """Writes ``metrics.csv`` after every epoch and ``samples.png`` after some; draws no random number that training uses."""

    def __init__(self, output: Path, every: int) -> None:
        self.output, self.every = output, every

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SpadeGenerator)
        epoch, path = trainer.current_epoch + 1, self.output / "metrics.csv"
        losses = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if not all(np.isfinite([*losses.values()])):
            raise UsageError(f"the training diverged in epoch {epoch}: its losses are not numbers; try a larger --batch-size")
        rows = []
        if epoch > 1:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) < epoch]
        write_table(path, ["epoch", *losses], [*rows, [epoch, *(f"{value:.6f}" for value in losses.values())]])
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            data = trainer.datamodule  # type: ignore[attr-defined]
            write_image(_samples(module, data.rows("train"), data.report.codes), self.output / "samples.png")


def _samples(generator: SpadeGenerator, rows: Sequence[Row], codes: MaskCodes) -> Image.Image:
    """Frame, label map and generated frame, a row each."""
    read, pictures, captions = PairReader(codes, generator.labels), [], []
    for index in np.unique(np.linspace(0, len(rows) - 1, _SAMPLES).round().astype(int)):
        frame, ids = read(rows[index])
        drawn, mask = generator.generate(ids, seed=int(index))
        real = Image.fromarray(frame).resize(drawn.shape[1::-1], Image.Resampling.LANCZOS)
        pictures.append([real, mask_to_display(mask, generator.labels), Image.fromarray(drawn)])
        captions.append(f"{Path(rows[index].name).stem}: frame, label map, generated frame")
    return contact_sheet(pictures, captions)


# Parts


def splits_of(run: str) -> RunSplits:
    """Which frame a run had in which part.

    Raises:
        UsageError: no run, or one whose parts share patients.
    """
    path = Path(run) / "splits.csv"
    if not path.is_file():
        raise UsageError(f"{run} is not a run folder, as it has no splits.csv; give the folder that a training left")
    splits = read_splits(path)
    if splits.note:
        raise UsageError(f"{run} divided its frames so that parts share patients ({splits.note}); give a run that did not")
    return splits


def run_parts(manifest: Manifest, splits: RunSplits, run: str) -> dict[str, str]:
    """The part of every frame by its name, as a run had it; empty for a made frame that it does not know.

    Raises:
        UsageError: other frames that the run does not know.
    """
    parts = {row.name: splits.part(row) for row in manifest.frames}
    if unknown := [row.name for row in manifest.frames if not (parts[row.name] or row.made)]:
        raise UsageError(
            f"{run} does not know {counted(len(unknown), 'frame')} of {manifest.source}: {listed(unknown)}; "
            "give a run that was trained on this dataset"
        )
    return parts
