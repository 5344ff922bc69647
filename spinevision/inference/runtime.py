"""``optimize``: an inference copy of a model, rewritten, in the precision asked for, compiled, and compared with the model."""

from __future__ import annotations

import copy
import ctypes
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spinevision.inference.compiled import CompiledCall, missing_compiler
from spinevision.inference.rewrites import (
    NetworkGraph,
    compose_projections,
    drop_frame_weights,
    drop_unused,
    fold_normalization,
    join_upsampling,
    merge_decode_head,
    tile_convolutions,
)
from spinevision.models.base import SpineModel
from spinevision.models.golden import TOLERANCE
from spinevision.models.segmenter import SpineSegmenter
from spinevision.models.unet_plus_plus import UNetPlusPlusNetwork
from spinevision.structures import Runtime

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=SpineModel)

Precision = Literal["fp32", "bf16", "fp16"]
Output = Literal["probability", "mask"]
Use = Literal["window", "stream"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TILED_CHANNELS: dict[Precision, int] = {"fp32": 256, "bf16": 512, "fp16": 512}
"""Channels from which a 3x3 convolution is faster in tiles on a processor (ours, measured)."""

_ANY_SIZE = (256, 256)
"""Frame (pixels) on which a model that does not resize is compared."""


def optimize(
    model: M,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    output: Output = "probability",
    compile: bool = True,  # noqa: A002  # its name everywhere in torch
    sizes: Sequence[tuple[int, int]] | None = None,
    batch_sizes: Sequence[int] = (1,),
    clips: Sequence[Use] = ("window", "stream"),
    prune: int | None = None,
) -> M:
    """Make a fast copy of a model that predicts as it does.

    Batch normalisation is folded, arithmetic rearranged so that the same result costs less (:mod:`spinevision.inference.rewrites`),
    what no answer needs is dropped, the weights are cast, and the network is compiled for the sizes that it will see. A call with
    another size runs uncompiled: nothing is ever compiled in the middle of a video. The model stays as it is; the copy cannot be
    trained or saved. On Linux the process is told to keep the memory that it frees, because
    asking the system for it again with every frame costs time.

    Args:
        model: a segmenter, classifier or cascade.
        device: where the copy runs; None for where the model is.
        precision: of weights and arithmetic.
        output: ``mask`` computes nothing that the mask does not need: predictions then have no probability.
        compile: whether to compile; takes from seconds to a minute or two, once.
        sizes: heights and widths (pixels) of the network's input to compile for; None takes that of the model's preprocessing.
        batch_sizes: frames or clips at a time to compile for; a smaller batch is filled up to the next.
        clips: what to compile of a clip model: whole windows (``predict`` of a list), the stream of single frames (video), or both.
        prune: of a U-Net++ with deep supervision, answer with head 1, 2 or 3 and leave out what only later ones need.

    Returns:
        The copy, in eval mode. Without a compiler on this machine it is not compiled, and the log says so.

    Raises:
        ValueError: an argument that cannot be, or a copy whose outputs moved more than the precision allows.
    """
    _check(model, precision, output, sizes, batch_sizes)
    made = _copy(model).to(device or next(model.network.parameters()).device).eval()
    compiled = compile and _can_compile(made, sizes)
    _keep_memory()
    parts: list[SpineModel] = [*made.parts.values()] or [made]
    rewritten: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, SpineSegmenter):
            _choose(part, output, prune)
        frame = _example(part)
        expected = _answers(part, frame)
        rewritten.update(_rewrite(part.network, _example(part, (64, 64))))
        if compiled and frame.device.type == "cpu":
            rewritten["convolutions tiled"] += tile_convolutions(part.network, TILED_CHANNELS[precision])
        part.network.to(DTYPES[precision]).to(memory_format=torch.channels_last).requires_grad_(False)
        if compiled:
            _compile(part, sizes, batch_sizes, clips)
        _compare(part, expected, _answers(part, frame), precision)
    record = Runtime(precision, output, dict(+rewritten), compiled)
    models: list[SpineModel] = [made, *parts]
    for each in models:
        each.runtime = record
    if made.parts:
        made._compiled = made.parts["segmenter"]._compiled
    return made


def _check(
    model: SpineModel, precision: str, output: str, sizes: Sequence[tuple[int, int]] | None, batch_sizes: Sequence[int]
) -> None:
    if model.runtime is not None:
        raise ValueError("this is an inference copy already; give the model that it was made from")
    for name, value, known in (("precision", precision, get_args(Precision)), ("output", output, get_args(Output))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes must be whole numbers of at least 1, found {list(batch_sizes)}")
    if sizes is not None and (not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes)):
        raise ValueError(f"sizes must be pairs of a height and a width in pixels, found {list(sizes)}")


def _copy(model: M) -> M:
    """Everything but the trainer and what a fit compiled."""
    models: list[SpineModel] = [model, *model.parts.values()]
    trainers = {id(each._trainer): None for each in models if each._trainer is not None}
    made = copy.deepcopy(model, trainers)
    made._compiled = {}
    return made


def _choose(part: SpineSegmenter, output: Output, prune: int | None) -> None:
    """Leave out what the caller does without; this alone changes what the network answers."""
    if prune is not None:
        network = part.network
        if not isinstance(network, UNetPlusPlusNetwork) or len(network.heads) == 1 or prune not in (1, 2, 3):
            found = f"{prune!r} of {type(part).__name__}"
            raise ValueError(f"prune must be 1, 2 or 3, of a U-Net++ with deep supervision, found {found}")
        network.predict_depth = prune
    if output == "mask" and part.threshold in (None, 0.5):
        drop_frame_weights(part.network)


def _rewrite(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Apply every exact rewrite; what they rely on decides their order."""
    graph = NetworkGraph(network, example)
    return {
        "unused parts dropped": drop_unused(network, graph),
        "normalisations folded": fold_normalization(network, graph),
        "upsamplings joined": join_upsampling(network),
        "decode heads merged": merge_decode_head(network),
        "projections composed": compose_projections(network),
    }


def _example(part: SpineModel, size: tuple[int, int] | None = None) -> Tensor:
    """A frame or clip of soft patches of colour, as the preprocessing gives it out, in the weights' precision."""
    height, width = size or _sizes(part)[0]
    coarse = torch.rand((part.clip_length or 1, 3, 12, 12), generator=torch.Generator("cpu").manual_seed(20251117))
    values = F.interpolate(coarse, (height, width), mode="bilinear")
    weight = next(part.network.parameters())
    frames = part.preprocess.normalize(values.to(weight.device)).to(weight.dtype)
    return frames if part.clip_length is None else frames[None]


def _sizes(part: SpineModel) -> list[tuple[int, int]]:
    return [part.preprocess.size if part.preprocess.resize_policy != "none" else _ANY_SIZE]


def _answers(part: SpineModel, frames: Tensor) -> list[Tensor]:
    """Logits of a frame; of a clip, and of its last frame from the stream."""
    with torch.inference_mode():
        answers = [part.call_network(frames)]
        if part.clip_length is not None:
            memory: tuple[Tensor, ...] = ()
            for frame in frames.unbind(1):
                logits, memory = part.call_network(frame, "stream", memory)
            answers.append(logits)
    return [answer.float().clone() for answer in answers]


def _can_compile(model: SpineModel, sizes: Sequence[tuple[int, int]] | None) -> bool:
    """Where it cannot, the log says why."""
    reason = missing_compiler(next(model.network.parameters()).device)
    if reason is None and sizes is None and model.preprocess.resize_policy == "none":
        reason = "it takes frames of any size and no sizes were given to compile for"
    if reason is not None:
        logger.warning("the model runs uncompiled, because %s", reason)
    return reason is None


def _compile(part: SpineModel, sizes: Sequence[tuple[int, int]] | None, batch_sizes: Sequence[int], clips: Sequence[Use]) -> None:
    device = next(part.network.parameters()).device
    for size in sizes or _sizes(part):
        example = _example(part, size)
        if part.clip_length is None or "window" in clips:
            call = part._compiled.setdefault("forward", CompiledCall(part.network, device))
            for batch in sorted(batch_sizes):
                cast(CompiledCall, call).learn(example.expand(batch, *example.shape[1:]).contiguous())
        if part.clip_length is not None and "stream" in clips:
            call = part._compiled.setdefault("stream", CompiledCall(part.network.stream, device))
            memory: tuple[Tensor, ...] = ()
            frames = example.unbind(1)
            with torch.inference_mode():
                for frame in frames:  # while the memory fills, uncompiled
                    _, memory = call(frame, memory)
            cast(CompiledCall, call).learn(frames[-1], memory)


def _compare(part: SpineModel, expected: list[Tensor], found: list[Tensor], precision: Precision) -> None:
    """By the measure of golden outputs; a difference of logits below 1 is taken as it is.

    Raises:
        ValueError: they differ by more than the precision allows.
    """
    tolerance = TOLERANCE[DTYPES[precision]]
    for before, after in zip(expected, found, strict=True):
        moved = float((after - before).abs().max() / before.abs().max().clamp_min(1))
        if not moved <= tolerance:
            raise ValueError(
                f"in {precision} the outputs of this {type(part).__name__} move by {moved:.1e} of the largest logit, at most "
                f"{tolerance:.0e} is allowed; use {'another precision' if precision == 'fp32' else 'fp32'}"
            )


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next frame instead of giving it back and having it zeroed anew."""
    trim_threshold, mmap_max = -1, -4
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(mmap_max, 0)
