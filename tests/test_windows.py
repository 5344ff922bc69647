"""Windows over a sequence: every item answered once, the last window shifted back."""

from __future__ import annotations

import pytest

from spinevision.windows import windows


def cut(count: int, length: int) -> list[tuple[list[int], int]]:
    return [(window.items, window.new) for window in windows(iter(range(count)), length)]


def test_by_hand() -> None:
    assert cut(0, 5) == []
    assert cut(3, 5) == [([0, 1, 2], 3)]
    assert cut(5, 5) == [([0, 1, 2, 3, 4], 5)]
    assert cut(7, 5) == [([0, 1, 2, 3, 4], 5), ([2, 3, 4, 5, 6], 2)]
    assert cut(4, 1) == [([0], 1), ([1], 1), ([2], 1), ([3], 1)]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_every_item_is_new_once_and_in_order(length: int) -> None:
    for count in range(23):
        found = cut(count, length)
        assert [item for items, new in found for item in items[-new:]] == list(range(count))
        assert all(items == list(range(items[0], items[0] + len(items))) for items, _ in found)
        assert all(len(items) == min(length, count) for items, _ in found)
