"""Work in other threads: what is handed over is bounded, errors come back, and every thread ends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Hands items from one thread to another; holds few of them.

    Args:
        capacity: items held, at least 1.
        newest: a giver who finds it full drops the oldest item held, which is counted in ``dropped``; else the giver waits.
    """

    def __init__(self, capacity: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self._capacity, self._newest = capacity, newest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Give an item; False when the taker wants no more."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._closed:
                if self._newest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no more follows; an error is raised where the items are taken, after the last of them."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no more is wanted; what is held is thrown away."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and not self._finished and not self._closed:
                    self._changed.wait()
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class Producer(Generic[T]):
    """Runs an iterator in a thread: ``with Producer(make, channel) as items: for item in items: ...``.

    Args:
        make: gives the items; called in the thread. What it opens it closes when its iterator is closed.
        channel: how they are handed over.
        patience_s: how long the end of the thread is waited for when no more is wanted; one that hangs longer is left behind and
            does not hold the program up. None waits as long as it takes.
    """

    def __init__(self, make: Callable[[], Iterator[T]], channel: Channel[T], patience_s: float | None) -> None:
        self._make, self._channel, self._patience_s = make, channel, patience_s
        self._thread = threading.Thread(target=self._run, name="spinevision-decode", daemon=True)

    def _run(self) -> None:
        try:
            items = self._make()
            try:
                for item in items:
                    if not self._channel.put(item):
                        break
            finally:
                if close := getattr(items, "close", None):
                    close()
        except BaseException as error:  # raised again by the taker
            self._channel.finish(error)
        else:
            self._channel.finish()

    def __enter__(self) -> Iterable[T]:
        self._thread.start()
        return self._channel

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        try:
            self._thread.join(self._patience_s)
        except BaseException:  # interrupted once more; what the thread reads from must not be closed under it
            self._thread.join(self._patience_s)
            raise


class Worker(Generic[T]):
    """Does one thing after the other in a thread: ``with Worker(act) as worker: worker.put(item)``.

    Leaving the block waits until everything given is done, also after an interruption or an error of the kinds ``kept``, so that
    what was begun is whole; after any other error what has not been begun is thrown away. An error in the thread is raised at the
    next ``put`` or at the end.

    Args:
        act: what is done with an item.
        name: of the thread.
        kept: errors after which the rest is still done.
        capacity: items that may wait.
    """

    def __init__(self, act: Callable[[T], None], name: str, kept: tuple[type[Exception], ...] = (), capacity: int = 2) -> None:
        self._act, self._kept = act, kept
        self._channel: Channel[T] = Channel(capacity)
        self._thread = threading.Thread(target=self._run, name=f"spinevision-{name}", daemon=True)
        self._error: BaseException | None = None

    def _run(self) -> None:
        try:
            for item in self._channel:
                self._act(item)
        except BaseException as error:  # raised again by the giver
            self._error = error
            self._channel.close()

    def put(self, item: T) -> None:
        """Give something to do; waits while too much is waiting."""
        if not self._channel.put(item):
            assert self._error is not None
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._channel.finish()
            if isinstance(error, Exception) and not isinstance(error, self._kept):
                self._channel.close()
            self._thread.join()
        except BaseException:  # interrupted once more: at once, but never while the thread is at work
            self._channel.close()
            self._thread.join()
            raise
        if self._error is not None and self._error is not error:
            raise self._error
