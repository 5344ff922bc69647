"""Threads that hand things over: nothing lost that should be kept, no error lost, no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from video_files import own_threads

from spinevision.inference.channel import Channel, Producer, Worker


def test_items_come_in_order_and_then_the_error() -> None:
    channel: Channel[int] = Channel(5)
    for item in range(3):
        assert channel.put(item)
    channel.finish(OSError("broken"))
    found = []
    with pytest.raises(OSError, match="broken"):
        for item in channel:
            found.append(item)
    assert found == [0, 1, 2]


def test_a_full_channel_lets_the_giver_wait() -> None:
    channel: Channel[int] = Channel(2)
    given = []

    def give() -> None:
        for item in range(6):
            channel.put(item)
            given.append(item)
        channel.finish()

    thread = threading.Thread(target=give)
    thread.start()
    time.sleep(0.1)
    assert given == [0, 1]
    assert list(channel) == [0, 1, 2, 3, 4, 5] and channel.dropped == 0
    thread.join(5)
    assert not thread.is_alive()


def test_where_the_newest_wins_the_oldest_are_dropped_and_counted() -> None:
    channel: Channel[int] = Channel(1, newest=True)
    for item in range(6):
        assert channel.put(item)
    channel.finish()
    assert list(channel) == [5] and channel.dropped == 5


def test_a_closed_channel_takes_no_more_and_frees_a_giver_who_waits() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    threading.Timer(0.1, channel.close).start()
    assert not channel.put(1)
    assert list(channel) == []


def test_a_producer_has_closed_its_source_when_the_block_is_left() -> None:
    closed = False

    def source() -> Iterator[int]:
        nonlocal closed
        try:
            while True:
                yield 0
        finally:
            time.sleep(0.1)
            closed = True

    with Producer(source, Channel(2), None) as items:
        assert next(iter(items)) == 0
    assert closed and own_threads() == []


def test_a_source_that_hangs_does_not_hold_the_program_up() -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        release.wait(10)

    started_s = time.monotonic()
    with Producer(source, Channel(2), 0.1) as items:
        next(iter(items))
    assert time.monotonic() - started_s < 2
    release.set()
    assert own_threads() == []


@pytest.mark.parametrize(("error", "done"), [(None, 8), (KeyboardInterrupt, 8), (OSError, 8), (RuntimeError, None)])
def test_a_worker_ends_what_was_given_but_after_a_fault(error: type[BaseException] | None, done: int | None) -> None:
    found: list[int] = []

    def act(item: int) -> None:
        time.sleep(0.02)
        found.append(item)

    def give() -> None:
        with Worker(act, "test", kept=(OSError,), capacity=8) as worker:
            for item in range(8):
                worker.put(item)
            if error is not None:
                raise error

    if error is None:
        give()
    else:
        with pytest.raises(error):
            give()
    assert found == list(range(len(found)))
    assert len(found) == done if done else len(found) < 4
    assert own_threads() == []


@pytest.mark.parametrize("puts", [1, 50])
def test_an_error_in_a_worker_comes_back(puts: int) -> None:
    """At the next thing given, or at the end."""

    def act(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"), Worker(act, "test") as worker:
        for item in range(puts):
            worker.put(item)
    assert own_threads() == []
