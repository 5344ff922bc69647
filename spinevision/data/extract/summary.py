"""What an extraction says when it is done."""

from __future__ import annotations

from spinevision.data.extract.extraction import Extraction
from spinevision.data.extract.journal import Progress
from spinevision.data.extract.settings import Settings
from spinevision.data.wording import counted


def summary(extraction: Extraction) -> str:
    """Whole sentences for the person at the keyboard: what was kept and dropped, whose it is, and what to look at."""
    settings, output, private = extraction.settings, extraction.output, extraction.private
    kept = sum(progress.verdicts["kept"] for _, progress in extraction.recordings)
    title = f"{counted(kept, 'frame')} of {counted(len(extraction.recordings), 'recording')}, without masks"
    damaged = sum(bool(progress.damage) for _, progress in extraction.recordings)
    if damaged:
        title += f"; {counted(damaged, 'recording')} ended early, damaged"
    if extraction.finished_before:
        lines = [f"{output} is finished already, and nothing was done: {title}"]
    else:
        lines = [f"wrote {output}: {title}"]
    lines += [f"  {recording.sequence}: {_told(progress, settings)}" for recording, progress in extraction.recordings]
    unknown = sum(not recording.patient for recording, _ in extraction.recordings)
    if unknown:
        lines.append(
            f"No patient is known of {counted(unknown, 'recording')}: patient_id is empty there, and recordings of one patient may "
            "come to lie on both sides of a split; --patient, --patient-from or --table name them."
        )
    if settings.blank_text:
        lines.append(
            "Text was looked for as what stays while the rest changes. That can miss names and dates: look at "
            f"{private}/*.preview.png and at the images before they leave your hands."
        )
    else:
        lines.append(
            "Text burnt into the picture was not looked for (--blank-text does); look at the images before they leave your hands."
        )
    lines.append(f"Keep {private} to yourself: it says which file each sequence is, and shows what was blanked.")
    return "\n".join(lines)


def _told(progress: Progress, settings: Settings) -> str:
    verdicts = progress.verdicts
    sample = f"{verdicts.total()} sampled"
    parts = [f"{counted(progress.frames or 0, 'frame')} read", sample]
    if settings.sharpness:
        parts.append(f"{verdicts['blurred']} blurred")
    if settings.difference:
        parts.append(f"{verdicts['duplicate']} near-duplicates")
    parts.append(f"{verdicts['kept']} kept")
    if settings.crop and progress.crop:
        x, y, width, height = progress.crop
        parts.append(f"cropped to {width}x{height} pixels at {x}, {y}")
    if progress.found is not None:
        parts.append(f"{progress.found:.1%} of the field of view blanked as text")
    return ", ".join(parts) + (f"; {progress.damage}" if progress.damage else "")
