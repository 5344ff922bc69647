"""Datasets with generated training frames: nothing real is lost or changed, nothing generated is ever scored."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spinevision.cli import main
from spinevision.data import label_variants
from spinevision.data.label_variants import vary_map
from spinevision.data.manifest import DatasetError, read_manifest
from spinevision.data.splits import split_frames
from spinevision.expanding import copy_part, expand_dataset
from spinevision.generating import GeneratorSettings, generator_settings, train_generator
from spinevision.images import read_mask
from spinevision.models.spade import SpadeGenerator, read_checkpoint
from spinevision.phantom import write_phantoms
from spinevision.recipes import UsageError
from spinevision.runs import write_splits
from spinevision.tables import write_table


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def set_column(folder: Path, **cells: dict[str, str]) -> None:
    """Fill a column of a folder's table by patient."""
    rows = rows_of(folder / "metadata.csv")
    for row in rows:
        row.update({column: values.get(row["patient_id"], values.get("*", "")) for column, values in cells.items()})
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six generated patients of three frames, with three tissues."""
    return write_phantoms(tmp_path / "data", patients=6, frames=3, size=(24, 30), classes="tissue")


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A run whose generator was never trained."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    manifest = read_manifest(folder)
    write_splits(tmp_path / "run" / "splits.csv", split_frames(manifest))
    labels = [*manifest.codes.labels]  # type: ignore[union-attr]
    arguments = {"labels": labels, "size": [16, 16], "width": 1, "depth": 2}
    generator = SpadeGenerator(**arguments)  # type: ignore[arg-type]
    record = {
        "spinevision": {"architecture": "SpadeGenerator"},
        "hyper_parameters": arguments,
        "state_dict": generator.state_dict(),
    }
    torch.save(record, tmp_path / "run" / "checkpoints" / "last.ckpt")
    return tmp_path / "run"


def test_expanding_keeps_all_that_is_real_and_adds_training_frames(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []

    def show(generator: SpadeGenerator, mask: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        small = mask[::2, ::2]
        given.append(small)
        return np.repeat(40 * small[..., None], 3, axis=2), small

    monkeypatch.setattr(SpadeGenerator, "generate", show)
    set_column(folder, note={"*": "=kept"})
    told = expand_dataset(folder, run, tmp_path / "new", share=0.75, progress=False)
    parts = {row["frame"]: row["part"] for row in rows_of(run / "splits.csv")}
    learnt = [name for name, part in parts.items() if part == "train"]
    before, after = rows_of(folder / "metadata.csv"), rows_of(tmp_path / "new" / "metadata.csv")
    real, made = after[: len(before)], after[len(before) :]
    for old, new in zip(before, real, strict=True):
        assert new == {**old, "split": parts[old["file_name"]], "generated": ""}
        for name in (old["file_name"], old["mask_file_name"]):
            assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()
    assert len(made) == round(0.75 * len(learnt)) == len(given)
    assert f"{len(made)} generated frames" in told
    assert {(row["split"], row["generated"], row["frame_index"]) for row in made} == {("train", "1", "")}
    known = {row[column] for row in before for column in ("patient_id", "sequence_id")}
    assert not known & {row[column] for row in made for column in ("patient_id", "sequence_id")}
    assert len({row["sequence_id"] for row in made}) == len(made)  # no clip is cut from frames that never followed each other
    codes = json.loads((tmp_path / "new" / "classes.json").read_text())
    assert codes == json.loads((folder / "classes.json").read_text())
    for row, ids in zip(made, given, strict=True):
        mask = read_mask(tmp_path / "new" / row["mask_file_name"])
        assert (mask == ids).all()  # ids and values of the phantom's classes are the same numbers
        assert (np.asarray(Image.open(tmp_path / "new" / row["file_name"]))[..., 0] == 40 * mask).all()
    # what a training makes of it
    old, new = (split_frames(read_manifest(place)) for place in (folder, tmp_path / "new"))
    for part in ("validation", "test"):
        assert [row.name for row in new.parts[part]] == [row.name for row in old.parts[part]]
    assert len(new.parts["train"]) == len(old.parts["train"]) + len(made)


def test_the_same_seed_writes_the_same_and_a_share_of_nothing_writes_no_frame(folder: Path, run: Path, tmp_path: Path) -> None:
    for name, share, seed in (("one", 0.5, 1), ("same", 0.5, 1), ("other", 0.5, 2), ("none", 0.0, 1)):
        expand_dataset(folder, run, tmp_path / name, share=share, seed=seed, progress=False)

    def made(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name / "masks" / "generated").glob("*.png")}

    assert made("one") == made("same") != made("other")
    assert made("none") == {}
    real = rows_of(tmp_path / "one" / "metadata.csv")[: len(rows_of(folder / "metadata.csv"))]
    assert rows_of(tmp_path / "none" / "metadata.csv") == real
    assert Image.open(next((tmp_path / "one" / "images" / "generated").glob("*.png"))).size == (16, 13)  # the aspect of 30x24


def test_values_of_binary_masks_and_names_that_are_taken(tmp_path: Path, run: Path) -> None:
    folder = write_phantoms(tmp_path / "nerve", patients=4, frames=2, size=(24, 24))  # masks hold 0 and 255
    set_column(folder, patient_id={"phantom01": "generated", "*": "one"}, split={"phantom01": "validation", "*": "train"})
    rows = rows_of(folder / "metadata.csv")
    assert {row["patient_id"] for row in rows} == {"generated", "one"}
    labels = [*read_manifest(folder).codes.labels]  # type: ignore[union-attr]
    record = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    arguments = record["hyper_parameters"] | {"labels": labels}
    record |= {"hyper_parameters": arguments, "state_dict": SpadeGenerator(**arguments).state_dict()}
    torch.save(record, run / "checkpoints" / "last.ckpt")
    expand_dataset(folder, run, tmp_path / "new", share=2, progress=False)
    made = [row for row in rows_of(tmp_path / "new" / "metadata.csv") if row["generated"]]
    assert {row["patient_id"] for row in made} == {"generated-2"}
    values = {value for row in made for value in np.unique(read_mask(tmp_path / "new" / row["mask_file_name"])).tolist()}
    assert values == {0, 255}


def test_what_would_let_a_test_patient_in_is_refused(folder: Path, run: Path, tmp_path: Path) -> None:
    parts = {row["patient"]: row["part"] for row in rows_of(run / "splits.csv")}
    learnt = next(patient for patient, part in parts.items() if part == "train")

    def refused(message: str, share: float = 0.5, kind: type[ValueError] = UsageError) -> None:
        with pytest.raises(kind, match=message):
            expand_dataset(folder, run, tmp_path / "new", share=share, progress=False)
        assert not (tmp_path / "new").exists()

    refused("share must be", share=-0.1)
    set_column(folder, split={**parts, learnt: "test"})
    refused(f"learnt from patient {learnt}, kept for validation or test")
    set_column(folder, split={"*": "train"})
    refused("names no validation frames", kind=DatasetError)
    set_column(folder, split={"phantom01": "validation"})
    refused("split cell is empty for 15 frames", kind=DatasetError)
    set_column(folder, split={"*": ""}, generated={"phantom01": "1"})
    refused("holds generated frames already")
    set_column(folder, generated={"*": ""})
    codes = json.loads((folder / "classes.json").read_text())
    (folder / "classes.json").write_text(json.dumps(codes | {"9": "disc"}))
    refused("train a generator on it")
    (folder / "classes.json").write_text(json.dumps(codes))
    table = (run / "splits.csv").read_text().splitlines()
    (run / "splits.csv").write_text("\n".join(table[:-1]))
    refused("does not know 1 frame")
    (run / "splits.csv").unlink()
    refused("is not a run folder")


def test_a_part_is_a_dataset_of_its_own(folder: Path, run: Path, tmp_path: Path) -> None:
    copy_part(folder, run, tmp_path / "test", "test")
    expected = {row["frame"] for row in rows_of(run / "splits.csv") if row["part"] == "test"}
    manifest = read_manifest(tmp_path / "test")
    assert {row.name for row in manifest.rows} == expected
    assert {row.part for row in manifest.rows} == {"test"}
    assert len(list((tmp_path / "test").rglob("*.png"))) == 2 * len(expected)


def test_copies_are_kept_and_neither_learnt_from_nor_counted(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {row["patient"]: row["part"] for row in rows_of(run / "splits.csv")}
    set_column(folder, split=parts)
    rows = rows_of(folder / "metadata.csv")
    copied = next(row for row in rows if row["split"] == "train")
    masks = {read_mask(folder / row["mask_file_name"]).tobytes() for row in rows if row["split"] == "train"}
    (folder / "copy.png").write_bytes((folder / copied["file_name"]).read_bytes())
    Image.new("L", (30, 24)).save(folder / "empty.png")
    rows = [{**row, "augmented": ""} for row in rows]
    rows.append({**copied, "file_name": "copy.png", "mask_file_name": "empty.png", "augmented": "1"})
    write_table(folder / "metadata.csv", [*rows[0]], [[*row.values()] for row in rows])
    given: list[bytes] = []
    monkeypatch.setattr("spinevision.expanding.vary_map", lambda ids, draws: (given.append(ids.tobytes()), ids)[1])
    told = expand_dataset(folder, run, tmp_path / "new", share=1, progress=False)
    learnt = sum(row["split"] == "train" for row in rows) - 1
    assert f"18 frames and 1 made frame of {folder}, {learnt} frames of them for training" in told
    assert f"{learnt} generated frames" in told
    assert len(given) == learnt
    assert set(given) <= masks
    kept = rows_of(tmp_path / "new" / "metadata.csv")[18]
    assert kept == {**rows[-1], "generated": ""}


def test_no_folder_is_written_inside_the_dataset(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for output in (folder / "images" / "new", Path("new")):
        with pytest.raises(UsageError, match="lies inside the dataset"):
            expand_dataset(folder, run, output, share=0, progress=False)
        with pytest.raises(UsageError, match="lies inside the dataset"):
            copy_part(folder, run, output, "test")
        assert not output.exists()


# Label maps


def test_a_varied_map_invents_no_label_and_leaves_no_hole() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 10:50], mask[25:35, 30:55] = 7, 3
    draws = np.random.default_rng(0)
    variants = [vary_map(mask, draws) for _ in range(30)]
    assert all(one.shape == mask.shape and one.dtype == mask.dtype for one in variants)
    assert all(set(np.unique(one)) <= {0, 3, 7} for one in variants)
    assert len({one.tobytes() for one in variants}) == 30
    area = np.mean([(one == 7).mean() for one in variants])
    assert area == pytest.approx((mask == 7).mean(), rel=0.25)


def test_without_turns_and_bends_a_variant_is_a_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROTATION_DEGREES", 0.0), ("SCALE", (1.0, 1.0)), ("SHIFT", 0.0), ("BEND", 0.0)):
        monkeypatch.setattr(label_variants, name, value)
    mask = np.random.default_rng(0).integers(0, 9, (7, 10), dtype=np.uint8)
    draws = np.random.default_rng(1)
    flips = {one.tobytes() for one in (mask, mask[::-1].copy(), mask[:, ::-1].copy(), mask[::-1, ::-1].copy())}
    assert {vary_map(mask, draws).tobytes() for _ in range(40)} == flips


# The training of a generator

SMALL: dict[str, Any] = {"size": (64, 64), "width": 1, "batch_size": 4}


@pytest.mark.slow
def test_a_generator_run_that_broke_off_goes_on_bit_for_bit_and_only_as_it_began(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, half, step = GeneratorSettings(str(folder), **SMALL), tmp_path / "half", SpadeGenerator.training_step
    train_generator(settings, tmp_path / "whole", epochs=3, workers=0, device="cpu")

    def break_off(generator: SpadeGenerator, batch: Any, index: int) -> None:
        step(generator, batch, index)
        if (generator.current_epoch, index) == (1, 1):
            raise RuntimeError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(SpadeGenerator, "training_step", break_off)
        with pytest.raises(RuntimeError, match="no power"):
            train_generator(settings, half, epochs=3, workers=0, device="cpu")
    assert read_checkpoint(half / "checkpoints" / "last.ckpt")["spinevision"]["epochs"] == 1
    assert generator_settings({"data": str(folder), "width": None}, half, resume=True) == settings
    for epochs, width, resume, message in (
        (3, 2, True, "began with width 1, now it is 2"),
        (1, 1, True, "has 1 epoch already"),
        (3, 1, False, "is not empty"),
    ):
        given = generator_settings({"data": str(folder), "width": width}, half, resume=True)
        with pytest.raises(UsageError, match=message):
            train_generator(given, half, epochs=epochs, resume=resume, workers=0)
    train_generator(settings, half, epochs=3, resume=True, workers=0, device="cpu")
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "half"))
    assert one["spinevision"]["epochs"] == other["spinevision"]["epochs"] == 3
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    for name in ("metrics.csv", "splits.csv", "config.yaml", "samples.png"):
        assert (half / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [row["epoch"] for row in rows_of(half / "metrics.csv")] == ["1", "2", "3"]
    assert [path.name for path in (half / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing_nor_does_an_interruption_with_them(folder: Path, tmp_path: Path) -> None:
    settings = GeneratorSettings(str(folder), **SMALL)
    for workers in (0, 1):
        train_generator(settings, tmp_path / str(workers), epochs=3, workers=workers, device="cpu")
    for epochs in (2, 3):
        train_generator(settings, tmp_path / "resumed", epochs=epochs, resume=epochs == 3, workers=1, device="cpu")
    losses = [(tmp_path / name / "metrics.csv").read_text() for name in ("0", "1", "resumed")]
    assert losses[0] == losses[1] == losses[2]
    one, *others = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("0", "1", "resumed"))
    for other in others:
        assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())


@pytest.mark.slow
def test_a_generator_learns_from_training_frames_alone(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[str] = set()
    step = SpadeGenerator.training_step
    monkeypatch.setattr(
        SpadeGenerator, "training_step", lambda self, batch, index: (seen.update(batch.names), step(self, batch, index))[1]
    )
    rows = [{**row, "augmented": ""} for row in rows_of(folder / "metadata.csv")]
    for row in rows[:3]:
        (folder / row["file_name"]).with_suffix(".copy.png").write_bytes((folder / row["file_name"]).read_bytes())
        name = Path(row["file_name"]).with_suffix(".copy.png").as_posix()
        rows.append({**row, "file_name": name, "augmented": "1"})  # a copy, which is no frame to learn from
    write_table(folder / "metadata.csv", [*rows[0]], [[*row.values()] for row in rows])
    words = ["data", "generator", str(folder), "--output", str(tmp_path / "generator"), "--splits", str(run), "--epochs", "1"]
    words += ["--size", "64", "64", "--width", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    assert main(words) == 0
    parts = {row["frame"]: row["part"] for row in rows_of(run / "splits.csv")}
    assert {parts.get(name, "made") for name in seen} == {"train"}
    assert f"on {list(parts.values()).count('train')} training frames of" in capsys.readouterr().out
    assert len(seen) >= list(parts.values()).count("train") - 1  # a last batch of one is left out
    assert (tmp_path / "generator" / "splits.csv").read_bytes() == (run / "splits.csv").read_bytes()
    assert (
        main(
            [
                "data",
                "expand",
                str(folder),
                "--generator",
                str(tmp_path / "generator"),
                "--share",
                "0.5",
                "--output",
                str(tmp_path / "new"),
            ]
        )
        == 0
    )
    assert main([*words, "--split-by", "patient", "--output", str(tmp_path / "again")]) == 2
    assert "the parts come from --splits" in capsys.readouterr().err
    (tmp_path / "generator" / "config.yaml").unlink()
    assert main([*words, "--resume"]) == 2
    assert "no generator to go on with" in capsys.readouterr().err
