"""The page itself: which parts it has and what happens when somebody uses them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from spinevision.images import read_frame, write_image
from spinevision.models.classifier import SpineClassifier
from spinevision.phantom import draw_sequence
from spinevision.serving.space import words
from spinevision.serving.space.answers import Answer, Model, RefusedError, ask, draw, full_gradient
from spinevision.serving.space.clips import ClipResult, ClipRun, StoppedError
from spinevision.serving.space.uploads import KEPT_S, Upload, clip_limits, image_limits, read_image, sentence_of
from spinevision.structures import MaskPrediction
from spinevision.video import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import gradio

OPACITY = 0.4
_LARGEST = "the largest mask"
_GENERATED = (0, 3, 7)
_GENERATED_SIZE = (360, 480)
_TELL_S = 1.0
"""How often a clip that is predicted tells how far it is (seconds)."""
_ABSENT = "Upload a frame first; one that has been here for long must be uploaded again."


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


def build_page(model: Model, name: str, examples: Sequence[Path], closing: Event) -> gradio.Blocks:
    """Put the page together.

    Args:
        model: on the device it shall run on.
        name: what people call it.
        examples: frames to try, files that exist as long as the page.
        closing: to be set when the page ends, so that nothing goes on after it.
    """
    import gradio as gr

    page = _Page(model, closing)
    classes = [] if isinstance(model, SpineClassifier) else [*model.labels.foreground.values()]
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(60, KEPT_S)) as blocks:
        gr.HTML(words.header(model, name), padding=False)
        with gr.Tab("Image"), gr.Row():
            with gr.Column():
                image = gr.Image(label="Frame", sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None)
                gr.HTML(words.note(image_limits(model)), padding=False)
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
                gr.HTML(words.note(clip_limits(model)), padding=False)
                with gr.Row():
                    start = gr.Button("Predict the clip", variant="primary")
                    stop = gr.Button("Stop")
                clip_words = gr.HTML(padding=False)
            with gr.Column():
                movie = gr.Video(label="Overlay", interactive=False, visible=bool(classes), elem_classes="sv-movie")
                timeline = gr.Image(label="Timeline", interactive=False, buttons=["fullscreen"], elem_classes="sv-timeline")
                tables = gr.File(label="Table of frames (CSV)" + (" and masks" if classes else ""), interactive=False)
        gr.HTML(words.note(f"Nothing is kept: uploads and results are deleted after {KEPT_S // 60} minutes."), padding=False)

        model_alone: Any = {"concurrency_limit": 1, "concurrency_id": "model", "preprocess": False}
        at_once: Any = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last", "preprocess": False}
        of_frame, of_clip = [kept, picture, numbers, mask, heat, why_words], [movie, timeline, tables, clip_words]
        explained = why.click(
            page.explain, [kept, target], [heat, why_words], show_progress_on=heat, api_visibility="private", **model_alone
        )
        # What was found in one frame never stands beside another: it goes at once, and the classes shown are looked at again
        # when the new frame has been predicted.
        predicted = image.change(page.clear_frame, None, of_frame, cancels=explained, **at_once).then(
            page.predict_frame,
            [image, shown, opacity],
            of_frame,
            trigger_mode="always_last",
            show_progress_on=picture,
            api_name="predict_frame",
            **model_alone,
        )
        predicted.then(page.settle, [kept, shown, opacity], picture, concurrency_limit=2, **at_once)
        for control in (shown, opacity):
            control.change(page.redraw, [kept, numbers, shown, opacity], picture, concurrency_limit=2, **at_once)
        watched = start.click(
            page.predict_clip,
            clip,
            of_clip,
            api_name="predict_clip",
            show_progress_on=movie if classes else timeline,
            **model_alone,
        )
        clip.change(page.clear_clip, None, of_clip, cancels=watched, **at_once)
        stop.click(page.clear_clip, None, of_clip, cancels=watched, **at_once)
    return blocks


class _Kept(NamedTuple):
    """What a session keeps of the last frame: the answer, and with which classes and opacity it was drawn first."""

    answer: Answer
    shown: tuple[str, ...]
    opacity: float


class _Page:
    """What happens; each method answers with the values of the parts that it changes."""

    def __init__(self, model: Model, closing: Event) -> None:
        self._model, self._closing = model, closing
        # Explaining runs the network with other weights for a while, which nothing else may see.
        self._alone = Lock()

    def clear_frame(self) -> tuple[Any, ...]:
        """Nothing of any frame."""
        return _of_frame()

    def predict_frame(self, payload: Any, shown: Sequence[str], opacity: float) -> Generator[tuple[Any, ...], None, None]:
        """Predict an uploaded frame."""
        yield _of_frame()
        upload = None
        try:
            upload = Upload.of(payload)
            if upload is None:
                return
            frame = read_image(upload, self._model)
            with self._alone:
                answer = ask(self._model, frame)
            picture, numbers = draw(answer, shown, _within(opacity)), words.numbers(self._model, answer)
        except Exception as error:
            yield _of_frame(numbers=_warn(upload, error))
            return
        with tempfile.TemporaryDirectory(prefix="spinevision-") as scratch:
            file = None
            if isinstance(answer, MaskPrediction):
                file = Path(scratch) / f"{upload.stem}-mask.png"
                answer.save(file)
            # What is yielded has been copied when the generator goes on, so that the folder can go.
            yield _of_frame(_Kept(answer, tuple(shown), opacity), picture, numbers, file)

    def settle(self, kept: _Kept | None, shown: Sequence[str], opacity: float) -> Any:
        """Draw a frame again if the classes or the opacity were changed while it was predicted."""
        import gradio as gr

        changed = kept is not None and (kept.shown, kept.opacity) != (tuple(shown), opacity)
        return self.redraw(kept, "", shown, opacity) if changed else gr.skip()

    def redraw(self, kept: _Kept | None, numbers: str, shown: Sequence[str], opacity: float) -> Image.Image | None:
        """Draw the frame again, without the network; no picture where what was kept is gone."""
        import gradio as gr

        if kept is not None:
            return draw(kept.answer, shown, _within(opacity))
        if words.holds_numbers(numbers):
            gr.Info(_ABSENT)
        return None

    def explain(self, kept: _Kept | None, target: str) -> tuple[Image.Image | None, str]:
        """Compute the FullGrad map of the frame that is shown."""
        if kept is None:
            return None, words.note(_ABSENT)
        try:
            with self._alone:
                picture, sentences = full_gradient(self._model, kept.answer.frame, None if target == _LARGEST else target)
        except Exception as error:
            return None, words.note(sentence_of(error, None))
        return picture, words.sentences(sentences)

    def clear_clip(self) -> tuple[Any, ...]:
        """Nothing of any clip."""
        return None, None, None, ""

    def predict_clip(self, payload: Any) -> Generator[tuple[Any, ...], None, None]:
        """Predict an uploaded clip; it ends when nobody asks how far it is any more."""
        import gradio as gr

        yield self.clear_clip()
        try:
            upload = Upload.of(payload)
        except RefusedError as error:
            yield None, None, None, _warn(None, error)
            return
        if upload is None:
            yield None, None, None, words.note("Choose a clip first.")
            return
        start_s = time.monotonic()
        run = ClipRun(self._model, upload, self._alone, self._closing)
        run.start()
        try:
            while not run.wait(_TELL_S):
                yield gr.skip(), gr.skip(), gr.skip(), words.note(run.in_words)
            if run.result is None:
                yield None, None, None, _warn(upload, run.error or StoppedError())
                return
            result = run.result
            overlay = None if result.overlay is None else str(result.overlay)
            tables = [str(path) for path in result.tables]
            yield overlay, str(result.timeline), tables, words.note(_summary(result, time.monotonic() - start_s))
        finally:
            run.leave()


def _of_frame(
    kept: _Kept | None = None, picture: Image.Image | None = None, numbers: str = "", file: Path | None = None
) -> tuple[Any, ...]:
    """What is shown of a frame, without a FullGrad map; nothing is the default."""
    import gradio as gr

    return kept, picture, numbers, gr.update(value=file, interactive=file is not None), None, ""


def _summary(result: ClipResult, elapsed_s: float) -> str:
    text = f"{result.frames} frames in {elapsed_s:.1f} s, {result.frames / elapsed_s:.1f} a second with drawing and encoding."
    return text if result.broke_off is None else f"{text} {result.broke_off}"


def _within(opacity: Any) -> float:
    """What the slider says, or what a program sent in its place."""
    return min(max(float(opacity), 0.0), 1.0)


def _warn(upload: Upload | None, error: Exception) -> str:
    """Show a message that goes away, and give the line that stays."""
    import gradio as gr

    sentence = sentence_of(error, upload)
    gr.Warning(words.escaped(sentence), duration=15)
    return words.note(sentence)
