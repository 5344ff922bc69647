"""The page itself: which parts it has and what happens when somebody uses them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from spinevision.images import read_frame, write_image
from spinevision.models.classifier import SpineClassifier
from spinevision.phantom import draw_sequence
from spinevision.serving.space import words
from spinevision.serving.space.answers import Answer, Model, ask, draw, full_gradient
from spinevision.serving.space.clips import ClipResult, predict_clip
from spinevision.serving.space.uploads import KEPT_S, LIMITS, Upload, read_image, sentence_of
from spinevision.structures import MaskPrediction
from spinevision.video import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import gradio

OPACITY = 0.4
_LARGEST = "the largest mask"
_GENERATED = (0, 3, 7)
_GENERATED_SIZE = (360, 480)
_CAN_FAIL = (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError, TypeError, LookupError, SyntaxError)
"""What decoders of damaged files and networks raise."""


def write_examples(frames: Sequence[Path], folder: Path) -> list[Path]:
    """The example frames as files in a folder: those given, as their pixels alone, or else generated scenes.

    Raises:
        ImageError: something that is not a frame.
    """
    if frames:
        images: Iterable[Any] = [read_frame(path) for path in frames]
    else:
        images = [next(draw_sequence(seed, 1, size=_GENERATED_SIZE, empty_fraction=0))[0] for seed in _GENERATED]
    paths = [folder / f"example-{number}.png" for number in range(1, len(frames or _GENERATED) + 1)]
    for path, image in zip(paths, images, strict=True):
        write_image(image, path)
    return paths


def build_page(model: Model, name: str, examples: Sequence[Path]) -> gradio.Blocks:
    """Put the page together.

    Args:
        model: on the device it shall run on.
        name: what people call it.
        examples: frames to try, files that exist as long as the page.
    """
    import gradio as gr

    page = _Page(model)
    classes = [] if isinstance(model, SpineClassifier) else [*model.labels.foreground.values()]
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(60, KEPT_S)) as blocks:
        gr.HTML(words.header(model, name), padding=False)
        with gr.Tab("Image"), gr.Row():
            with gr.Column():
                image = gr.Image(label="Frame", sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None)
                gr.HTML(words.note(LIMITS["image"]), padding=False)
                if examples:
                    gr.Examples([str(path) for path in examples], image, label="Examples", cache_examples=False)
            with gr.Column():
                kept = gr.State(None, time_to_live=KEPT_S)
                picture = gr.Image(
                    label="What the model finds", interactive=False, buttons=["fullscreen"], elem_classes="sv-overlay"
                )
                shown = gr.CheckboxGroup(
                    classes, value=classes, label="Classes shown", elem_classes="sv-classes", visible=bool(classes)
                )
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity (0: outline only)", visible=bool(classes))
                numbers = gr.HTML(padding=False)
                mask = gr.DownloadButton(
                    "Download the mask (PNG of label ids)", interactive=False, size="md", visible=bool(classes)
                )
                with gr.Accordion("Why? FullGrad map", open=False):
                    target = gr.Dropdown([_LARGEST, *classes], value=_LARGEST, label="Class to explain", visible=len(classes) > 1)
                    why = gr.Button("Compute the map of this frame", size="md")
                    heat = gr.Image(label="FullGrad", interactive=False, buttons=["fullscreen"])
                    why_words = gr.HTML(padding=False)
        with gr.Tab("Video"), gr.Row():
            with gr.Column():
                clip = gr.File(label="Short clip", file_types=sorted(VIDEO_SUFFIXES), height=140)
                gr.HTML(words.note(LIMITS["clip"]), padding=False)
                start = gr.Button("Predict the clip", variant="primary")
                clip_words = gr.HTML(padding=False)
            with gr.Column():
                movie = gr.Video(label="Overlay", interactive=False, visible=bool(classes), elem_classes="sv-movie")
                timeline = gr.Image(label="Timeline", interactive=False, buttons=["fullscreen"], elem_classes="sv-timeline")
                tables = gr.File(label="Table of frames (CSV)" + (" and masks" if classes else ""), interactive=False)
        gr.HTML(words.note(f"Nothing is kept: uploads and results are deleted after {KEPT_S // 60} minutes."), padding=False)

        model_alone: Any = {"concurrency_limit": 1, "concurrency_id": "model", "preprocess": False}
        image.change(
            page.predict_frame,
            [image, shown, opacity],
            [kept, picture, numbers, mask, heat, why_words],
            show_progress_on=picture,
            api_name="predict_frame",
            **model_alone,
        )
        for control in (shown, opacity):
            control.change(
                page.redraw,
                [kept, shown, opacity],
                picture,
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
                concurrency_limit=2,
            )
        why.click(page.explain, [kept, target], [heat, why_words], show_progress_on=heat, api_visibility="private", **model_alone)
        busy = movie if classes else timeline
        start.click(
            page.predict_clip,
            clip,
            [movie, timeline, tables, clip_words],
            api_name="predict_clip",
            show_progress_on=busy,
            **model_alone,
        )
    return blocks


class _Page:
    """What happens; each method answers with the values of the parts that it changes."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict_frame(self, payload: Any, shown: Sequence[str], opacity: float) -> Generator[tuple[Any, ...], None, None]:
        """Predict an uploaded frame."""
        import gradio as gr

        nothing = (None, None, "", gr.update(value=None, interactive=False), None, "")
        upload = None
        try:
            upload = Upload.of(payload)
            if upload is None:
                yield nothing
                return
            answer = ask(self._model, read_image(upload))
            picture, numbers = draw(answer, shown, _within(opacity)), words.numbers(self._model, answer)
        except _CAN_FAIL as error:
            yield None, None, _warn(upload, error), gr.update(value=None, interactive=False), None, ""
            return
        with tempfile.TemporaryDirectory(prefix="spinevision-") as scratch:
            file = None
            if isinstance(answer, MaskPrediction):
                file = Path(scratch) / f"{upload.stem}-mask.png"
                answer.save(file)
            # What is yielded has been copied when the generator goes on, so that the folder can go.
            yield answer, picture, numbers, gr.update(value=file, interactive=file is not None), None, ""

    def redraw(self, kept: Answer | None, shown: Sequence[str], opacity: float) -> Any:
        """Draw the frame again, without the network; nothing where what was kept is gone."""
        import gradio as gr

        return gr.skip() if kept is None else draw(kept, shown, _within(opacity))

    def explain(self, kept: Answer | None, target: str) -> tuple[Image.Image | None, str]:
        """Compute the FullGrad map of the frame that is shown."""
        if kept is None:
            return None, words.note("Upload a frame first; one that has been here for long must be uploaded again.")
        try:
            picture, sentences = full_gradient(self._model, kept.frame, None if target == _LARGEST else target)
        except _CAN_FAIL as error:
            return None, words.note(sentence_of(error, None))
        return picture, words.sentences(sentences)

    def predict_clip(self, payload: Any) -> Generator[tuple[Any, ...], None, None]:
        """Predict an uploaded clip."""
        upload, start_s = None, time.monotonic()
        with tempfile.TemporaryDirectory(prefix="spinevision-") as scratch:
            try:
                upload = Upload.of(payload)
                if upload is None:
                    yield None, None, None, words.note("Choose a clip first.")
                    return
                result = predict_clip(self._model, upload, Path(scratch), _reporter())
            except _CAN_FAIL as error:
                yield None, None, None, _warn(upload, error)
                return
            overlay = None if result.overlay is None else str(result.overlay)
            tables = [str(path) for path in result.tables]
            yield overlay, str(result.timeline), tables, words.note(_summary(result, time.monotonic() - start_s))


def _summary(result: ClipResult, elapsed_s: float) -> str:
    text = f"{result.frames} frames in {elapsed_s:.1f} s, {result.frames / elapsed_s:.1f} a second with drawing and encoding."
    return text if result.broke_off is None else f"{text} {result.broke_off}"


def _reporter() -> Any:
    import gradio as gr

    progress = gr.Progress()

    def report(done: int, total: int | None) -> None:
        progress((done, total), desc="frames", unit="frames")

    return report


def _within(opacity: Any) -> float:
    """What the slider says, or what a program sent in its place."""
    return min(max(float(opacity), 0.0), 1.0)


def _warn(upload: Upload | None, error: Exception) -> str:
    """Show a message that goes away, and give the line that stays."""
    import gradio as gr

    sentence = sentence_of(error, upload)
    gr.Warning(words.escaped(sentence), duration=15)
    return words.note(sentence)
