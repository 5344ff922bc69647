"""Models that were exported to a file of another engine, opened again: the same ``predict``, without the model's own code."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from spinevision.images import ImageSource, read_frame
from spinevision.inference.export.engines import EngineError, first_line, onnx_session, openvino_model, quiet, require
from spinevision.labels import LabelSpace
from spinevision.structures import MaskPrediction, PresencePrediction
from spinevision.windows import windows

Format = Literal["onnx", "torch-export", "openvino"]
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch-export", ".xml": "openvino"}
"""What the name of an exported file ends in, and its format."""
KEY = "spinevision"
"""Under which the description lies in a file."""
FORMAT_VERSION = 1

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself.

    Args:
        architecture: class name of the model.
        target: what it answers: the ``mask`` of a frame, or the ``presence`` of each label.
        labels: class names.
        threshold: of the probability, 0 to 1; None where the most probable class decides.
        temperature: what the network's logits are divided by; it is inside the file.
        gate: probability of presence below which a cascade leaves the mask empty; None for every other model.
        frames: frames of a clip; None for single frames.
        size: height and width (pixels) of the only frames that it takes; None where it takes any.
        least_side: height and width that a frame has at least (pixels).
        preprocess: arguments of :class:`spinevision.preprocess.Preprocess`, for information: it is inside the file.
        license: of the weights, as the Hub names it; None where none was stated.
        encoder: where the published weights of the encoder came from, and their licence; None without any.
        versions: of this package and of the libraries that wrote the file.
        weights_sha256: of the file of weights that lies beside an OpenVINO file; else None.
        format_version: of this description.
    """

    architecture: str
    target: Literal["mask", "presence"]
    labels: list[str]
    threshold: float | None
    temperature: float
    gate: float | None
    frames: int | None
    size: list[int] | None
    least_side: int
    preprocess: dict[str, Any]
    license: str | None
    encoder: dict[str, Any] | None
    versions: dict[str, str]
    weights_sha256: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def outputs(self) -> list[str]:
        """Names of what the file answers, in order."""
        if self.target == "presence":
            return ["probability", "present"]
        return ["mask", "probability", *(["presence"] if self.gate is not None else [])]

    @property
    def input(self) -> str:
        """Name of what the file takes."""
        return "frame" if self.frames is None else "frames"

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def parse(cls, text: str, path: str | Path) -> Description:
        """Read :meth:`text`.

        Raises:
            EngineError: something else.
        """
        try:
            values = json.loads(text)
            if values["format_version"] != FORMAT_VERSION:
                raise EngineError(
                    f"{path} was written in format {values['format_version']}, this version of spinevision reads {FORMAT_VERSION}; "
                    "export the model again"
                )
            if set(values) != {field.name for field in fields(cls)} or values["target"] not in ("mask", "presence"):
                raise ValueError("its entries are not those that belong there")
            LabelSpace.of(values["labels"])
            return cls(**values)
        except EngineError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the description inside {path} cannot be read ({error}); export the model again") from error

    def check(self, images: Sequence[np.ndarray]) -> None:
        """Refuse frames that the file does not take.

        Raises:
            ValueError: the sentence says what it takes.
        """
        for image in images:
            height, width = image.shape[:2]
            if self.size is not None and [height, width] != self.size:
                raise ValueError(f"this file takes frames of {self.size[0]}x{self.size[1]} pixels alone, found {height}x{width}")
            if min(height, width) < self.least_side:
                raise ValueError(f"this file takes frames of at least {self.least_side} pixels a side, found {height}x{width}")
        if len({image.shape for image in images}) > 1:
            raise ValueError("the frames of a clip have different sizes; give frames of one size")
        if self.frames is not None and len(images) != self.frames:
            raise ValueError(f"this file takes clips of {self.frames} frames, found {len(images)}; give a list of at least as many")


class _Exported:
    """A file and the engine that runs it."""

    def __init__(self, description: Description, run: Run) -> None:
        self.description = description
        self.labels = LabelSpace.of(description.labels)
        self._run = run

    def answer(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """What the file says of the frames of one window, uint8 (H, W, 3) each, by the names of its outputs.

        Raises:
            ValueError: frames that it does not take.
        """
        self.description.check(images)
        frames = np.ascontiguousarray(images[0] if self.description.frames is None else np.stack(images))
        return dict(zip(self.description.outputs, self._run(frames), strict=True))


class ExportedSegmenter(_Exported):
    """A segmenter from an exported file; made by :func:`load_exported`."""

    @overload
    def predict(self, frames: ImageSource) -> MaskPrediction: ...  # type: ignore[overload-overlap]  # a text is a sequence of texts
    @overload
    def predict(self, frames: Sequence[ImageSource]) -> list[MaskPrediction]: ...
    def predict(self, frames: ImageSource | Sequence[ImageSource]) -> MaskPrediction | list[MaskPrediction]:
        """Find the mask of a frame, or of each frame of a list, at its own size, as the model that was exported does.

        A file of a clip model takes lists of at least a clip.

        Args:
            frames: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB; or a list of these.

        Raises:
            ImageError: something that is not a frame.
            ValueError: a frame of a size that the file does not take, or too few frames.
        """
        single = not isinstance(frames, (list, tuple))
        images = [read_frame(frame) for frame in ([frames] if single else frames)]  # type: ignore[arg-type, union-attr]
        predictions: list[MaskPrediction] = []
        for window, new in windows(images, self.description.frames or 1):
            predictions += self._predict_window(window)[-new:]
        return predictions[0] if single else predictions

    def _predict_window(self, window: Sequence[np.ndarray]) -> list[MaskPrediction]:
        answer = self.answer(window)
        if self.description.frames is None:
            answer = {name: values[None] for name, values in answer.items()}
        chances = answer["presence"].tolist() if "presence" in answer else [None] * len(window)
        parts = zip(answer["mask"], answer["probability"], window, chances, strict=True)
        return [MaskPrediction(mask, values, self.labels, frame, chance) for mask, values, frame, chance in parts]


class ExportedClassifier(_Exported):
    """A classifier from an exported file; made by :func:`load_exported`."""

    @overload
    def predict(self, frames: ImageSource) -> PresencePrediction: ...  # type: ignore[overload-overlap]  # a text is a sequence
    @overload
    def predict(self, frames: Sequence[ImageSource]) -> list[PresencePrediction]: ...
    def predict(self, frames: ImageSource | Sequence[ImageSource]) -> PresencePrediction | list[PresencePrediction]:
        """Tell what is in a frame, or in each frame of a list, as the model that was exported does.

        Args:
            frames: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB; or a list of these.

        Raises:
            ImageError: something that is not a frame.
            ValueError: a frame of a size that the file does not take.
        """
        if isinstance(frames, (list, tuple)):
            return [self._predict_frame(read_frame(frame)) for frame in frames]
        return self._predict_frame(read_frame(frames))  # type: ignore[arg-type]

    def _predict_frame(self, frame: np.ndarray) -> PresencePrediction:
        answer = self.answer([frame])
        chances, present = (dict(zip(self.labels, answer[name].tolist(), strict=True)) for name in ("probability", "present"))
        assert self.description.threshold is not None
        return PresencePrediction(chances, present, self.description.threshold, frame)


def load_exported(path: str | Path, device: str = "cpu", threads: int | None = None) -> ExportedSegmenter | ExportedClassifier:
    """Open a file that ``spinevision export`` wrote.

    A file of ONNX (``.onnx``) runs in ONNX Runtime, one of OpenVINO (``.xml``, its weights beside it as ``.bin``) in OpenVINO,
    both in float32; neither can run code of its own. One of torch.export (``.pt2``) runs in PyTorch, whose loader uses pickle:
    **open only such files from people you trust**. What is inside is looked at first, without pickle, so that a file that
    was not written by this package is refused before anything in it could run.

    Args:
        path: the file.
        device: ``cpu``; for ONNX Runtime also ``cuda`` or ``tensorrt``, for OpenVINO the name of one of its devices.
        threads: of ONNX Runtime or OpenVINO; None takes a thread a core. PyTorch has its own setting.

    Raises:
        EngineError: not such a file, or its engine is not installed or lacks the device.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise EngineError(f"{path} is not an exported model; its name must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    open_file = {"onnx": _open_onnx, "torch-export": _open_torch, "openvino": _open_openvino}[SUFFIXES[path.suffix]]
    description, run = open_file(path, device, threads)
    kind = ExportedClassifier if description.target == "presence" else ExportedSegmenter
    return kind(description, run)


def _not_ours(path: Path) -> EngineError:
    return EngineError(f"{path} holds no description by spinevision; give a file that spinevision export wrote")


def _open_onnx(path: Path, device: str, threads: int | None) -> tuple[Description, Run]:
    session = onnx_session(path, device, threads)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise _not_ours(path)
    description = Description.parse(text, path)
    return description, lambda frames: session.run(description.outputs, {description.input: frames})


def _open_openvino(path: Path, device: str, threads: int | None) -> tuple[Description, Run]:
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise FileNotFoundError(f"the weights of {path} are not beside it; put {weights.name} there")
    compiled, info = openvino_model(path, device, "fp32", threads)
    if KEY not in info:
        raise _not_ours(path)
    description = Description.parse(info[KEY].astype(str), path)
    if hashlib.sha256(weights.read_bytes()).hexdigest() != description.weights_sha256:
        raise EngineError(f"{weights} does not belong to {path.name}; copy both files of one export")
    request = compiled.create_infer_request()

    def run(frames: np.ndarray) -> list[np.ndarray]:
        request.infer([frames], share_inputs=True)
        return [np.array(request.get_tensor(name).data) for name in description.outputs]

    return description, run


def _open_torch(path: Path, device: str, threads: int | None) -> tuple[Description, Run]:
    if device != "cpu" or threads is not None:
        raise EngineError("a torch.export file runs on cpu, in as many threads as torch.set_num_threads says; leave both out")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith(f"/{KEY}.json")]
            if len(entries) != 1:
                raise _not_ours(path)
            description = Description.parse(archive.read(entries[0]).decode(), path)
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise EngineError(f"{path} is not a file of torch.export ({error}); export the model again") from error
    torch = require("torch")
    try:
        with quiet():
            module = torch.export.load(path).module()
    except Exception as error:  # whatever a pickle or a graph of another version raises
        raise EngineError(f"PyTorch {torch.__version__} cannot open {path}: {first_line(error)}") from error

    def run(frames: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [answer.numpy() for answer in module(torch.from_numpy(frames))]

    return description, run
