"""Where a model's answer to a frame comes from: maps, each with what tells whether it can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spinevision.analysis.full_gradient import Completeness, Maps, record, state_of
from spinevision.analysis.random_weights import WeightsCheck, mean_rank_correlation, shuffle
from spinevision.images import ImageSource, field_of_view, read_frame
from spinevision.labels import LabelSpace
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.operating_point import calibrated
from spinevision.models.segmenter import SpineSegmenter, decide
from spinevision.preprocess import Placement

METHODS = {"full_gradient": "FullGrad", "grad_cam": "Grad-CAM", "input_gradient": "Input gradient"}
"""The maps by name, and what a reader calls them."""

COMPLETE = 1e-3
"""Residuals from here on are called not small; ours."""

_STEPS = (0.0, 0.25, 0.5, 0.75)
"""Shares of the layers, counted from the head, that are random in turn before all of them are; one layer at least."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a model answers a frame as it does.

    Args:
        architecture: the class of the model.
        frame: uint8 (H, W, 3) RGB.
        labels: of the model.
        target: the class or label explained.
        region: where its logits are summed, bool (H, W); for a classifier, everywhere.
        region_kind: ``mask`` where the model finds the class, ``frame`` everywhere, or ``given``.
        answer: the mask, uint8 (H, W) label ids; from a classifier the probability of each label, 0 to 1.
        maps: float32 (H, W) by name (:data:`METHODS`), 0 and more, without a unit.
        random_map: FullGrad of the first random network, likewise.
        layer: what Grad-CAM looked at.
        completeness: of FullGrad.
        check: with random weights.
        sentences: what a reader has to know, in words.
    """

    architecture: str
    frame: np.ndarray
    labels: LabelSpace
    target: str
    region: np.ndarray
    region_kind: str
    answer: np.ndarray | dict[str, float]
    maps: Mapping[str, np.ndarray]
    random_map: np.ndarray
    layer: str
    completeness: Completeness
    check: WeightsCheck
    sentences: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """Everything but the pictures, as plain data."""
        verdicts = {method: self.check.uninformative(method) for method in METHODS}
        return {
            "format_version": 1,
            "architecture": self.architecture,
            "frame": {"height": self.frame.shape[0], "width": self.frame.shape[1]},
            "target": self.target,
            "region": {"kind": self.region_kind, "pixels": int(self.region.sum())},
            "probability": self.answer if isinstance(self.answer, dict) else None,
            "completeness": self.completeness._asdict(),
            "grad_cam_layer": self.layer,
            "random_weights": {**asdict(self.check), "uninformative": verdicts},
            "sentences": list(self.sentences),
        }


class _Question(NamedTuple):
    """What is explained: a number made of the network's logits."""

    target: str
    region: np.ndarray
    kind: str
    answer: np.ndarray | dict[str, float]
    output: Callable[[Tensor], Tensor]
    sentences: list[str]


def explain(
    model: SpineSegmenter | SpineClassifier,
    frame: ImageSource,
    *,
    target: str | None = None,
    region: Literal["mask", "frame"] | np.ndarray = "mask",
    layer: str | None = None,
    layerwise: bool = False,
    draws: int = 3,
    seed: int = 0,
    bound: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Explanation:
    """Explain a model's answer to a frame by FullGrad, Grad-CAM and the input gradient, and check all three.

    A segmenter is explained by the sum of the class's logits, at the frame's own size, over a region; a classifier by the label's
    logit. A clip model answers the frame as a still; of a cascade, the segmenter is explained. The model stays as it is.

    Where the head is a 1x1 convolution, as in a U-Net, Grad-CAM's default layer gives hardly more than the logits; name a deeper
    one to see more. A sum over a region depends on what lies in and around it whatever the weights are, so that such a map, taken
    as a whole, mostly survives random weights; ``region="frame"`` is free of this.

    Args:
        model: on the device it shall run on.
        frame: path, encoded bytes, PIL image or uint8 array (H, W, 3) RGB.
        target: a class or label; None takes the class with the largest mask, or the likeliest label.
        region: ``mask`` is where the model finds the class, or the whole frame where it finds it nowhere, which is said; ``frame``
            is the whole frame; or a region of your own, bool (H, W). A classifier takes none.
        layer: the module of the network that Grad-CAM looks at, by name; None takes the last map before the head.
        layerwise: also randomise the last layers alone: one, a quarter of all, half and three quarters.
        draws: how many random networks, at least 1; ours.
        seed: of the first.
        bound: rank correlation with random weights, -1 to 1, above which a map is called uninformative; ours.
        dtype: of the computation, whatever the weights have; float64 takes about twice as long.

    Raises:
        ImageError: something that is not a frame.
        ValueError: no such class or layer, a region that is none, none of several classes found and none named, draws or bound out
            of range, or gradients that are not finite.
    """
    if draws < 1 or not -1 <= bound <= 1:
        raise ValueError(f"draws is at least 1 and bound a correlation from -1 to 1, found {draws} and {bound}")
    image = read_frame(frame)
    model, notes = _still_model(model, image)
    network, preprocess = model.network, model.preprocess
    tensor, placement = preprocess.resize(image)
    with torch.inference_mode(False), torch.enable_grad(), model.evaluating():
        inputs = preprocess.normalize(tensor[None].to(next(network.parameters()).device)).to(dtype)
        trained = state_of(network, dtype)
        recording = record(network, trained, inputs, layer=layer, head=model.HEAD)
        logits = recording.logits.detach()
        if isinstance(model, SpineSegmenter):
            question = _ask_segmenter(model, logits, placement, target, region)
        else:
            question = _ask_classifier(model, logits, image, target, region)
        maps = recording.backward(question.output(recording.logits))
        if not all(values.isfinite().all() for values in (maps.full_gradient, maps.grad_cam, maps.input_gradient)):
            raise ValueError("the gradient of the model's answer to this frame is not finite; look at the model's weights")
        last_first = recording.order[::-1]

        def randomised(layers: int) -> list[Maps]:
            """The maps with random weights in the last layers, a few times over."""
            found = []
            for draw in range(draws):
                state = shuffle(network, trained, last_first[:layers], seed + draw)
                again = record(network, state, inputs, layer=layer, head=model.HEAD)
                found.append(again.backward(question.output(again.logits)))
            return found

        steps = {max(1, round(share * len(last_first))) for share in _STEPS} if layerwise else set()
        series = {layers: [each.full_gradient for each in randomised(layers)] for layers in sorted(steps)}
        randoms = randomised(len(last_first))

    inner, view = (
        _inner(placement, preprocess.resize_mask(each.astype(np.uint8))) == 1 for each in (question.region, field_of_view(image))
    )

    def correlation(one: Tensor, others: Sequence[Tensor], where: np.ndarray) -> float | None:
        values, *rest = (_inner(placement, each)[where] for each in (one, *others))
        return mean_rank_correlation(values, rest)

    whole = bool(question.region.all())
    pairs = {name: (getattr(maps, name), [getattr(each, name) for each in randoms]) for name in METHODS}
    series |= {len(last_first): pairs["full_gradient"][1]} if layerwise else {}
    check = WeightsCheck(
        draws=draws,
        seed=seed,
        bound=bound,
        correlation={name: correlation(*pair, view) for name, pair in pairs.items()},
        inside={name: None if whole else correlation(*pair, inner & view) for name, pair in pairs.items()},
        layerwise={layers: correlation(maps.full_gradient, each, view) for layers, each in series.items()},
    )

    sentences = [*notes, *question.sentences, *_in_words(maps.completeness)]
    if not maps.input_gradient.any():
        sentences.append("The output does not change with the frame at all here, so that no map says anything.")
    return Explanation(
        architecture=type(model).__name__,
        frame=image,
        labels=model.labels,
        target=question.target,
        region=question.region,
        region_kind=question.kind,
        answer=question.answer,
        maps={name: preprocess.restore(one[None], placement)[0].cpu().numpy() for name, (one, _) in pairs.items()},
        random_map=preprocess.restore(randoms[0].full_gradient[None], placement)[0].cpu().numpy(),
        layer=recording.layer,
        completeness=maps.completeness,
        check=check,
        sentences=(*sentences, *(check.in_words(method, title) for method, title in METHODS.items())),
    )


def _still_model(model: SpineSegmenter | SpineClassifier, image: np.ndarray) -> tuple[SpineSegmenter | SpineClassifier, list[str]]:
    """The model that is explained, and what has to be said of it."""
    notes = []
    if isinstance(model, SpineCascade):
        with model.evaluating(), torch.inference_mode():
            chance = model.presence(image)
        state = "open" if chance >= model.gate else "shut, which the explanation leaves aside"
        notes.append(f"Of the cascade, the segmenter is explained; the gate ({model.gate:.2f}) is {state} at {chance:.2f}.")
        model = model.segmenter
    if model.clip_length is not None:
        notes.append(
            "The model takes clips; explained is its answer to the frame as a still, which may differ from that in a clip."
        )
    return model, notes


def _ask_segmenter(
    model: SpineSegmenter, logits: Tensor, placement: Placement, target: str | None, region: str | np.ndarray
) -> _Question:
    restored = model.preprocess.restore(logits[0], placement)
    mask = decide(calibrated(restored[None], model.temperature), model.threshold)[0].cpu().numpy()
    sizes = {name: int((mask == index).sum()) for index, name in model.labels.foreground.items()}
    if target is None and not model.labels.binary and not any(sizes.values()):
        raise ValueError(f"the model finds none of its classes in this frame; name one to explain, of {', '.join(sizes)}")
    name = max(sizes, key=lambda each: sizes[each]) if target is None else _known(target, model.labels)
    channel, sentences = model.labels.names.index(name), []
    found = mask == (1 if model.labels.binary else channel)
    where, kind = np.ones_like(found), "frame"
    if isinstance(region, np.ndarray):
        where, kind = _checked(region, mask.shape), "given"
    elif region == "mask" and found.any():
        where, kind = found, "mask"
    elif region == "mask":
        sentences.append(f"The model finds no {name} in this frame, so the whole frame is explained.")
    elif region != "frame":
        raise ValueError(f'region must be "mask", "frame" or a bool array of the frame\'s size, found {region!r}')
    weights = torch.from_numpy(where).to(logits.device)

    def output(answer: Tensor) -> Tensor:
        return (model.preprocess.restore(answer[0], placement)[channel] * weights).sum()

    place = {"mask": "where the model finds it", "given": "of the region given", "frame": "of the frame"}[kind]
    total = output(logits).item()
    sentences.append(f"Explained is {name}: its logits summed over the {int(where.sum())} pixels {place}, {total:.6g}.")
    return _Question(name, where, kind, mask, output, sentences)


def _ask_classifier(
    model: SpineClassifier, logits: Tensor, image: np.ndarray, target: str | None, region: str | np.ndarray
) -> _Question:
    if isinstance(region, np.ndarray) or region != "mask":
        raise ValueError("a classifier's logit is of the whole frame; leave the region out")
    chances = dict(zip(model.labels, calibrated(logits[0], model.temperature).sigmoid().tolist(), strict=True))
    name = max(chances, key=lambda each: chances[each]) if target is None else _known(target, model.labels)
    channel = model.labels.names.index(name)
    sentence = f"Explained is the logit of {name}, {logits[0, channel].item():.6g} (probability {chances[name]:.3f})."
    return _Question(name, np.ones(image.shape[:2], dtype=bool), "frame", chances, lambda answer: answer[0, channel], [sentence])


def _known(target: str, labels: LabelSpace) -> str:
    if target not in labels.names:
        raise ValueError(f"the model has no class {target!r}; its classes are {', '.join(labels)}")
    return target


def _checked(region: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if region.dtype != bool or region.shape != shape or not region.any():
        raise ValueError(
            f"a region is a bool array of the frame's size {shape} with at least one pixel, "
            f"found {region.dtype} {region.shape} with {np.count_nonzero(region)}"
        )
    return region


def _inner(placement: Placement, values: Tensor) -> np.ndarray:
    """The part of a map (h, w) at the size of the network's input that the frame fills."""
    bottom, right = placement.top + placement.scaled_height, placement.left + placement.scaled_width
    inner: np.ndarray = values[placement.top : bottom, placement.left : right].cpu().numpy()
    return inner


def _in_words(found: Completeness) -> list[str]:
    scale = "the output" if found.scale == abs(found.output) else "0.001 of the terms' absolute sum"
    sentences = [
        f"FullGrad's terms, the input's and {found.biases} of biases, add up to {found.total:.6g} for an output of "
        f"{found.output:.6g}: residual {found.residual:.1e} of {scale}."
    ]
    causes = f"; not piecewise linear here: {', '.join(found.curved)}" if found.curved else ""
    if not found.residual < COMPLETE:
        sentences.append(f"That is not small, so that the map accounts for the output in part only{causes}.")
    elif causes:
        sentences.append(f"That is small for this frame, which is not certain for others{causes}.")
    if found.unplaced >= 0.01:
        sentences.append(f"{found.unplaced:.0%} of the bias terms have no place in the frame and are not in the map.")
    return sentences
