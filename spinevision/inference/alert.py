"""An alert with hysteresis on how much of the view a class covers."""

from __future__ import annotations

from dataclasses import dataclass

from spinevision.labels import LabelSpace


class AreaAlert:
    """On from a first share of the field of view, off below a lower one, so that it does not flicker between the two.

    Args:
        on: it goes on at this share or more, above 0 and at most 1.
        off: it goes off below this share, above 0 and at most ``on``.

    Raises:
        ValueError: shares out of range.
    """

    def __init__(self, on: float, off: float) -> None:
        if not 0 < off <= on <= 1:
            raise ValueError(
                f"an alert goes on at a share above 0 and at most 1, and off at that or a lower one; found {on} and {off}"
            )
        self._on, self._off, self._active = on, off, False

    def __call__(self, area: float) -> bool:
        """Whether it is on for the next frame, of which this share (0 to 1) is covered."""
        self._active = area >= (self._off if self._active else self._on)
        return self._active


@dataclass(frozen=True)
class AlertSettings:
    """Of which class, and from which shares of the field of view (0 to 1).

    Args:
        name: the class.
        on: see :class:`AreaAlert`.
        off: see :class:`AreaAlert`; half of ``on`` where a command line names none (ours).

    Raises:
        ValueError: shares out of range.
    """

    name: str
    on: float
    off: float

    def __post_init__(self) -> None:
        self.start()

    @classmethod
    def parse(cls, text: str) -> AlertSettings:
        """Read ``CLASS=FRACTION`` or ``CLASS=ON:OFF``, as ``bleeding=0.2`` or ``bleeding=0.2:0.15``.

        Raises:
            ValueError: another text, or shares out of range.
        """
        name, _, shares = text.rpartition("=")
        on, _, off = shares.partition(":")
        try:
            first = float(on)
            second = float(off) if off else first / 2
        except ValueError:
            first = second = float("nan")
        if not name or first != first or second != second:
            raise ValueError(
                f"an alert is written CLASS=FRACTION or CLASS=ON:OFF, as bleeding=0.2 or bleeding=0.2:0.15; found {text!r}"
            )
        return cls(name, first, second)

    def check(self, labels: LabelSpace) -> None:
        """Refuse a model without the class.

        Raises:
            ValueError: the model lacks it.
        """
        if self.name not in labels.foreground.values():
            raise ValueError(f"the model has no class {self.name}, only {', '.join(labels.foreground.values())}; correct --alert")

    def start(self) -> AreaAlert:
        """An alert that is off."""
        return AreaAlert(self.on, self.off)
