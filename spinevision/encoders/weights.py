"""How published weights of a family of networks become the tensors of one of ours: all of them, or none.

A published file names its tensors in its own way and holds some that we have no use for, such as a classification head. A
:class:`WeightFamily` says for each of our tensors which published ones it is made of; :func:`convert` does it and accounts for
every name on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

_COUNTER = "num_batches_tracked"
"""How many batches a normalisation has seen: published or not as the exporter pleased, and without effect on any output."""
_SHOWN = 3

Shape = tuple[int, ...]


class WeightError(ValueError):
    """Published weights that do not fill an encoder; the sentence names the tensors."""


@dataclass(frozen=True)
class Origin:
    """What one of our tensors is made of.

    Args:
        names: published names, in the order in which ``combine`` takes their tensors; one name where there is no ``combine``.
        combine: makes our tensor; None takes the one published tensor as it is.
    """

    names: tuple[str, ...]
    combine: Callable[..., Tensor] | None = None


def same_name(name: str, shape: Shape) -> Origin:
    """The origin of a layout that names every tensor as we do."""
    return Origin((name,))


@dataclass(frozen=True)
class WeightFamily:
    """A published layout.

    Args:
        name: of the layout, for messages, such as ``torchvision ResNet``.
        origin: from the name (that of the network's state dict) and the shape of one of our tensors to what it is made of; it
            answers for every name, and a published name that does not exist is reported as missing.
        unneeded: regular expressions; a published name that none of our tensors uses must match one of them from its beginning.
        prefixes: what may stand before published names, such as ``segformer.``. All other names here are written without it.
    """

    name: str
    origin: Callable[[str, Shape], Origin]
    unneeded: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """Published weights as ours.

    Args:
        family: name of the layout.
        tensors: our name to tensor, for every tensor of the encoder but batch counters.
        used: published names that went into them.
        unused: published names that did not: those the family calls unneeded, and batch counters.
    """

    family: str
    tensors: dict[str, Tensor]
    used: tuple[str, ...]
    unused: tuple[str, ...]


def convert(published: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], families: Sequence[WeightFamily]) -> Conversion:
    """Make every wanted tensor from published ones, by the family with the fewest faults; one fault left, and none is made.

    Args:
        published: name to tensor.
        wanted: our name to shape, for every tensor of the encoder; batch counters may be among them and are passed over.
        families: the layouts to try, at least one.

    Raises:
        WeightError: a tensor that cannot be made, has another shape or holds no floating-point numbers, or a published one that
            nothing accounts for; or nothing is wanted.
    """
    shapes = {name: tuple(shape) for name, shape in wanted.items() if not name.endswith(_COUNTER)}
    if not shapes or not families:
        raise WeightError("this network has no part that published weights could fill; train it without encoder weights")
    trials = [_Trial(published, shapes, family, prefix) for family in families for prefix in ("", *family.prefixes)]
    best = min(trials, key=lambda trial: trial.faults)
    if best.faults:
        raise WeightError(best.complaint([family.name for family in families]))
    return Conversion(best.family.name, best.tensors, tuple(sorted(best.used)), tuple(sorted(set(published) - best.used)))


class _Trial:
    """One layout, with one prefix before its names, tried on published weights."""

    def __init__(self, published: Mapping[str, Tensor], wanted: Mapping[str, Shape], family: WeightFamily, prefix: str) -> None:
        self.family = family
        self.tensors: dict[str, Tensor] = {}
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.unfit: list[str] = []
        full_names = {name.removeprefix(prefix): name for name in published}
        for name, shape in wanted.items():
            origin = family.origin(name, shape)
            absent = [source for source in origin.names if source not in full_names]
            sources = [full_names[source] for source in origin.names if source in full_names]
            self.used.update(sources)
            if absent:
                self.missing += [prefix + source for source in absent]
                continue
            try:
                tensor = _make(origin, [published[source] for source in sources])
            except (RuntimeError, IndexError):  # what torch raises where shapes do not go together
                self.unfit.append(f"{' and '.join(sources)} for {name} {list(shape)}")
                continue
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                found = f"{list(tensor.shape)}{'' if tensor.is_floating_point() else f' of {tensor.dtype}'}"
                self.unfit.append(f"{' and '.join(sources)} for {name}, {found} where {list(shape)} is expected")
            self.tensors[name] = tensor
        self.missing = list(dict.fromkeys(self.missing))
        rest = [name for name in published if name not in self.used and not name.endswith(_COUNTER)]
        self.strange = [name for name in rest if not _matches(name.removeprefix(prefix), family.unneeded)]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unfit) + len(self.strange)

    def complaint(self, tried: Sequence[str]) -> str:
        nearest = f", the nearest of {', '.join(tried)}" if len(tried) > 1 else ""
        kinds = {"missing": self.missing, "of another shape": self.unfit, "not known": self.strange}
        faults = "; ".join(f"{kind} {_listed(names)}" for kind, names in kinds.items() if names)
        return (
            f"these weights do not fill the encoder in the layout {self.family.name}{nearest}: {faults}; nothing was loaded; "
            "give weights of this very network"
        )


def _make(origin: Origin, sources: Sequence[Tensor]) -> Tensor:
    if origin.combine is not None:
        return origin.combine(*sources)
    (tensor,) = sources
    return tensor


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _listed(names: Sequence[str]) -> str:
    """The first few names and how many there are besides."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
