"""The timeline of a video: how much of the view each class covers, and the presence that a cascade saw."""

from __future__ import annotations

import io
import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from spinevision.files import write_bytes
from spinevision.labels import LabelSpace


class Timeline:
    """Areas and presence frame by frame, a few numbers each, and their plot.

    Args:
        labels: names and colours, those of the overlay.
        gate: probability at which the presence gate of a cascade opens; None for a segmenter alone.
    """

    def __init__(self, labels: LabelSpace, gate: float | None = None) -> None:
        self._labels, self._gate = labels, gate
        self._times_s = array("d")
        self._presence = array("d")
        self.names = [*labels.foreground.values()]
        self._areas = {name: array("d") for name in self.names}

    def __len__(self) -> int:
        return len(self._times_s)

    def add(self, time_s: float, areas: Sequence[float], presence: float | None = None) -> None:
        """Note a frame: its time (s), the share of the field of view of each class of ``names`` (0 to 1), and the presence."""
        self._times_s.append(time_s)
        self._presence.append(float("nan") if presence is None else presence)
        for name, area in zip(self.names, areas, strict=True):
            self._areas[name].append(area)

    def figure(self) -> Figure:
        """Area of each class (% of the field of view) over time (s); above it the presence with its gate, where there is one."""
        rows = 1 if self._gate is None else 2
        figure = Figure(figsize=(11, 2.9 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        if self._gate is not None:
            self._draw_presence(axes[0], self._gate)
        self._draw_areas(axes[-1])
        axes[-1].set_xlabel("time (s)")
        for axis in axes:
            axis.grid(alpha=0.25)
            axis.margins(x=0.01)
            axis.spines[["top", "right"]].set_visible(False)
        return figure

    def _draw_presence(self, axis: Axes, gate: float) -> None:
        axis.plot(self._times_s, self._presence, color="black", linewidth=1.2, marker=self._marker, label="presence")
        axis.axhline(gate, color="tab:red", linestyle="--", linewidth=1, label=f"gate {gate:.2f}")
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("probability of presence")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    def _draw_areas(self, axis: Axes) -> None:
        for index, name in self._labels.foreground.items():
            color = [value / 255 for value in self._labels.color(index)]
            shares = [100 * area for area in self._areas[name]]
            (line,) = axis.plot(
                self._times_s, shares, color=color, linewidth=1.6, marker=self._marker, label=name.replace("$", r"\$")
            )
            line.set_path_effects([withStroke(linewidth=2.8, foreground="0.35")])  # the overlay's colours are made for dark tissue
        axis.set_ylim(bottom=0)
        if axis.get_ylim()[1] < 1:
            axis.set_ylim(top=1)  # so that nothing does not look like something
        axis.set_ylabel("area (% of the field of view)")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    @property
    def _marker(self) -> str:
        """A line through a single frame would not be seen."""
        return "o" if len(self) == 1 else ""

    def write(self, path: str | Path) -> None:
        """Write the plot as PNG; nothing where there was no frame."""
        if not len(self):
            return
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in scripts that the font lacks are drawn as boxes
            self.figure().savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        write_bytes(path, buffer.getvalue())
