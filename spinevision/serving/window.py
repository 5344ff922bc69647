"""The live picture in a window of the desktop, drawn with Tk."""

from __future__ import annotations

import time
import tkinter
from collections import deque
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image, ImageEnhance, ImageTk

from spinevision.images import draw_overlay
from spinevision.serving.board import BEHIND_MS, Board, Shown

_TICK_MS = 10
_WINDOW_S = 5.0
_DARK, _INK, _ALARM, _FROZEN, _NOTICE, _ALERT = "#060708", "#e6e9ec", "#b3261e", "#1b5fa8", "#39424b", "#9a5b00"
_KEYS = "space freezes   s saves   o overlay   1-9 a class   + - opacity   q closes"


class LiveWindow:
    """A window that shows the newest frame of a board: ``LiveWindow(board).run()``, in the main thread.

    The picture is scaled to the window, and the overlay is drawn at that size.

    Args:
        board: what to show.

    Raises:
        ValueError: no window can be opened here.
    """

    def __init__(self, board: Board) -> None:
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ValueError(f"no window can be opened here ({error}); leave out --window to use a page in a browser") from error
        self._board = board
        self._shown: Shown | None = None
        self._photo: ImageTk.PhotoImage | None = None
        self._frozen = self._bare = self._stale = False
        self._saved = ""
        self._latencies_ms: deque[tuple[float, float]] = deque(maxlen=1000)
        self._failure: BaseException | None = None
        self._build()
        self._root.report_callback_exception = self._failed
        self._root.after(0, self._tick)

    def run(self) -> None:
        """Show until the window is closed."""
        try:
            self._root.mainloop()
        finally:
            self._root.destroy()
        if self._failure is not None:
            raise self._failure

    def _build(self) -> None:
        root, labels = self._root, self._board.labels
        root.title(self._board.title)
        root.tk_setPalette(background=_DARK, foreground=_INK, selectColor=_DARK)
        root.geometry("1100x760")
        self._banner = tkinter.Label(root, foreground="white", font=("TkDefaultFont", 16, "bold"), pady=6)
        self._picture = tkinter.Label(root, background="black", borderwidth=0)
        bar = tkinter.Frame(root)
        self._numbers = tkinter.Label(root, anchor="w", font=("TkFixedFont", 12))
        footer = f"Research software, not a medical device.   {_KEYS}"
        tkinter.Label(root, text=footer, anchor="w", background=_DARK, foreground="#9aa4ae").pack(side="bottom", fill="x", padx=8)
        self._numbers.pack(side="bottom", fill="x", padx=8)
        bar.pack(side="bottom", fill="x", padx=8, pady=4)
        self._picture.pack(fill="both", expand=True)
        self._opacity = tkinter.IntVar(root, 40)
        tkinter.Label(bar, text="Opacity").pack(side="left")
        scale = tkinter.Scale(bar, to=100, orient="horizontal", variable=self._opacity, length=160)
        scale.configure(command=lambda _: self._draw(), highlightthickness=0, takefocus=False)
        scale.pack(side="left", padx=8)
        self._classes: dict[int, tkinter.BooleanVar] = {}
        for index, name in labels.foreground.items():
            chosen = self._classes[index] = tkinter.BooleanVar(root, True)
            red, green, blue = labels.color(index)
            box = tkinter.Checkbutton(bar, text=name, variable=chosen, command=self._draw)
            box.configure(foreground=f"#{red:02x}{green:02x}{blue:02x}", activebackground=_DARK, takefocus=False)
            box.pack(side="left", padx=6)
        root.bind("<Key>", self._key)
        self._picture.bind("<Configure>", lambda _: self._draw())

    def _key(self, event: tkinter.Event) -> None:
        key = event.char.lower()
        if key == "q":
            self._root.quit()
        elif key == " ":
            self._frozen = not self._frozen
        elif key == "s":
            self._save()
        elif key == "o":
            self._bare = not self._bare
        elif key in ("+", "-"):
            self._opacity.set(min(max(self._opacity.get() + (10 if key == "+" else -10), 0), 100))
        elif key.isdecimal() and 0 < int(key) <= len(self._classes):
            chosen = [*self._classes.values()][int(key) - 1]
            chosen.set(not chosen.get())
        self._draw()

    def _tick(self) -> None:
        """Look for a newer frame, then bring the words up to date."""
        newest = self._board.newest
        if newest is not None and newest is not self._shown and not self._frozen:
            self._shown, self._saved = newest, ""
            self._draw()
            self._root.update_idletasks()
            now_s = time.monotonic()
            self._latencies_ms.append((now_s, (now_s - newest.captured_s) * 1000))
        self._write()
        self._root.after(_TICK_MS, self._tick)

    def _overlay(self, size: tuple[int, int] | None = None) -> Image.Image:
        """The picture on show with the classes that are switched on, at a width and height or its own."""
        assert self._shown is not None
        prediction = self._shown.frame.prediction
        frame, mask = prediction.frame, prediction.mask
        if size is not None:
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        on = [index for index, chosen in self._classes.items() if chosen.get() and not self._bare]
        return draw_overlay(frame, np.where(np.isin(mask, on), mask, 0), self._board.labels, self._opacity.get() / 100)

    def _draw(self) -> None:
        if self._shown is None:
            return
        height, width = self._shown.frame.prediction.mask.shape
        scale = min(self._picture.winfo_width() / width, self._picture.winfo_height() / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = self._overlay(size)
        if self._stale:  # nobody may take it for live
            picture = ImageEnhance.Brightness(ImageEnhance.Color(picture).enhance(0.15)).enhance(0.45)
        self._photo = ImageTk.PhotoImage(picture, master=self._root)
        self._picture.configure(image=self._photo)

    def _save(self) -> None:
        if self._shown is not None:
            path = Path(f"spinevision-{time.strftime('%Y-%m-%dT%H-%M-%S')}.png")
            self._overlay().save(path)
            self._saved = f"saved {path}"

    def _write(self) -> None:
        problem = self._board.problem()
        if problem is None and self._latencies_ms and not self._frozen and self._latencies_ms[-1][1] > BEHIND_MS:
            problem = f"Late. The picture is {self._latencies_ms[-1][1] / 1000:.1f} s behind"
        alert = self._shown.alert if self._shown is not None else ""
        if self._stale != (problem is not None):
            self._stale = problem is not None
            self._draw()
        if problem is not None:
            self._banner.configure(text=problem, background=_NOTICE if self._board.state in ("waiting", "ended") else _ALARM)
        elif self._frozen:
            self._banner.configure(text="FROZEN, not live", background=_FROZEN)
        elif alert:
            self._banner.configure(text=f"Alert: {alert}", background=_ALERT)
        elif self._bare:
            self._banner.configure(text="Overlay hidden", background=_NOTICE)
        if problem is None and not self._frozen and not self._bare and not alert:
            self._banner.pack_forget()
        elif not self._banner.winfo_ismapped():
            self._banner.pack(fill="x", before=self._picture)
        now_s = time.monotonic()
        while self._latencies_ms and now_s - self._latencies_ms[0][0] > _WINDOW_S:
            self._latencies_ms.popleft()
        if self._shown is not None and self._numbers.cget("text") != (line := self._line()):
            self._numbers.configure(text=line)

    def _line(self) -> str:
        assert self._shown is not None
        frame, texts = self._shown.frame, []
        latencies_ms = [latency for _, latency in self._latencies_ms]
        if len(latencies_ms) > 1:
            p50, p95 = np.quantile(latencies_ms, (0.5, 0.95))
            span_s = self._latencies_ms[-1][0] - self._latencies_ms[0][0]
            texts.append(f"latency p50 {p50:.0f} ms  p95 {p95:.0f} ms  {(len(latencies_ms) - 1) / span_s:.1f} frames/s")
        texts.append(f"{frame.dropped} dropped")
        if frame.delay_ms > 0:
            texts.append(f"smoothing lags {frame.delay_ms:.0f} ms more")
        if frame.prediction.presence is not None:
            texts.append(f"tissue present {frame.prediction.presence:.0%}")
        texts += [f"{name} {area:.1%}" if area else f"{name} absent" for name, area in frame.prediction.area_fraction.items()]
        texts += filter(None, [self._board.note, self._saved])
        return "   ".join(texts)

    def _failed(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """End the window with the error, Ctrl-C among them, instead of printing it."""
        self._failure = error
        self._root.quit()
