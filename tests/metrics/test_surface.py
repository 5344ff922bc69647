"""Surface distances against a double loop over pixels, scipy's distance transform and masks worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import directed_hausdorff

from spinevision.labels import IGNORE_INDEX, LabelSpace
from spinevision.metrics import SurfaceDistance, surface_scores
from spinevision.metrics.surface import surface, surface_distances

NERVE = LabelSpace(("nerve",))
TISSUE = LabelSpace(("background", "bone", "disc"))
NAN = float("nan")


def edge_pixels(mask):
    """Pixels of a nested list with a neighbour that is not in the mask or not in the frame."""
    height, width = len(mask), len(mask[0])

    def inside(y, x):
        return 0 <= y < height and 0 <= x < width and mask[y][x]

    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y][x] and not all(inside(y + a, x + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    ]


def by_loops(prediction, truth, tolerance):
    """Hausdorff distance 95 and normalised surface distance from the definitions, pair by pair."""
    ours, theirs = edge_pixels(prediction.tolist()), edge_pixels(truth.tolist())
    directions = []
    for start, goal in ((ours, theirs), (theirs, ours)):
        directions.append(sorted(min(math.dist(a, b) for b in goal) for a in start))
    percentiles = []
    for distances in directions:
        place = 0.95 * (len(distances) - 1)
        low = math.floor(place)
        high = min(low + 1, len(distances) - 1)
        percentiles.append(distances[low] + (place - low) * (distances[high] - distances[low]))
    pooled = directions[0] + directions[1]
    return max(percentiles), sum(d <= tolerance for d in pooled) / len(pooled)


def mask_of(*pixels, size=(9, 11)):
    mask = torch.zeros(1, *size, dtype=torch.long)
    for y, x in pixels:
        mask[0, y, x] = 1
    return mask


@pytest.mark.parametrize("share", [0.03, 0.3, 0.8])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 3.0])
def test_equal_to_a_double_loop(share, tolerance):
    generator = torch.Generator().manual_seed(round(100 * share))
    masks = (torch.rand(2, 12, 9, 13, generator=generator) < share).long()
    masks[:, :, 4, 4] = 1  # none empty
    scores = surface_scores(*masks, NERVE, tolerance)
    for n in range(12):
        distance, near = by_loops(masks[0, n], masks[1, n], tolerance)
        assert scores["hd95_px"][n].item() == pytest.approx(distance, abs=1e-12)
        assert scores["nsd"][n].item() == pytest.approx(near, abs=1e-12)


def test_equal_to_scipy_on_larger_masks():
    rng = np.random.default_rng(0)
    for _ in range(5):
        y, x = np.mgrid[:70, :90]
        masks = [((y - cy) ** 2 + 2 * (x - cx) ** 2 < r**2) for cy, cx, r in rng.uniform(15, 60, (2, 3))]
        forth, back = surface_distances(*masks)
        edges = [surface(mask) for mask in masks]
        np.testing.assert_array_equal(forth, distance_transform_edt(~edges[1])[edges[0]])
        np.testing.assert_array_equal(back, distance_transform_edt(~edges[0])[edges[1]])
        points = [np.argwhere(edge) for edge in edges]
        assert max(forth.max(), back.max()) == max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])


@pytest.mark.parametrize(
    ("prediction", "truth", "distance", "near"),
    [
        (mask_of((4, 4)), mask_of((4, 4)), 0.0, 1.0),
        (mask_of((0, 0)), mask_of((3, 4)), 5.0, 0.0),
        (mask_of((0, 0)), mask_of((0, 2)), 2.0, 1.0),  # the tolerance itself counts as right
        (mask_of((0, 0), (0, 1)), mask_of((0, 1), (0, 4)), 2.85, 3 / 4),  # distances 1, 0 and 0, 3: 95th percentiles 0.95 and 2.85
        (torch.ones(1, 9, 11, dtype=torch.long), torch.ones(1, 9, 11, dtype=torch.long), 0.0, 1.0),
        (torch.ones(1, 5, 5, dtype=torch.long), mask_of((2, 2), size=(5, 5)), math.sqrt(8), (12 - 4 - 8 + 4 + 1) / 17),
    ],
)
def test_by_hand(prediction, truth, distance, near):
    scores = surface_scores(prediction, truth, NERVE, tolerance_px=2.0)
    assert scores["hd95_px"].item() == pytest.approx(distance)
    assert scores["nsd"].item() == pytest.approx(near)
    assert torch.equal(surface_scores(truth, prediction, NERVE, 2.0)["hd95_px"], scores["hd95_px"])


def test_a_mask_on_the_edge_of_the_frame_ends_there():
    full = surface(np.ones((6, 8), bool))
    assert full.sum() == 2 * 8 + 2 * 4
    assert not full[1:-1, 1:-1].any()


def test_empty_masks_follow_the_rule():
    none, some = mask_of(), mask_of((2, 2), (3, 2))
    prediction, target = torch.cat((none, none, some, some, none)), torch.cat((none, some, none, some, some))
    diagonal = math.hypot(8, 10)
    for rule, distances, near in (
        ("exclude", [NAN, NAN, NAN, 0.0, NAN], [NAN, NAN, NAN, 1.0, NAN]),
        ("worst", [NAN, diagonal, diagonal, 0.0, diagonal], [NAN, 0.0, 0.0, 1.0, 0.0]),
    ):
        scores = surface_scores(prediction, target, NERVE, one_sided=rule)
        np.testing.assert_allclose(scores["hd95_px"][:, 0], distances)
        np.testing.assert_allclose(scores["nsd"][:, 0], near)
        metric = SurfaceDistance(NERVE, one_sided=rule)
        metric.update(prediction, target)
        result = metric.compute()
        assert result["hd95_px"].item() == pytest.approx(np.nanmean(distances), abs=1e-7)
        assert result["nsd"].item() == pytest.approx(np.nanmean(near), abs=1e-7)
        assert result["frames"].item() == np.isfinite(distances).sum()
        assert (result["missed_frames"].item(), result["false_frames"].item()) == (2, 1)


def test_ignored_pixels_belong_to_no_mask():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 6, 9, 9, generator=generator) < 0.5).long()
    hidden = torch.rand(6, 9, 9, generator=generator) < 0.3
    target = target.masked_fill(hidden, IGNORE_INDEX)
    found = surface_scores(prediction, target, NERVE)
    other = surface_scores(torch.where(hidden, 1 - prediction, prediction), target, NERVE)
    cut = surface_scores(prediction * ~hidden, target.masked_fill(hidden, 0), NERVE)
    for name, value in found.items():
        assert torch.equal(value, other[name])
        assert torch.equal(value, cut[name])
    everywhere = SurfaceDistance(NERVE, one_sided="worst")
    everywhere.update(prediction, torch.full_like(target, IGNORE_INDEX))
    assert everywhere.compute()["hd95_px"].isnan().all()
    assert everywhere.frames.sum() == 0


def test_each_class_by_itself_and_an_absent_one_is_nan():
    prediction, target = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    prediction[0, 1, 1], target[0, 1, 2] = 1, 1
    scores = surface_scores(prediction, target, TISSUE)
    np.testing.assert_allclose(scores["hd95_px"], [[1.0, NAN]])
    np.testing.assert_allclose(scores["nsd"], [[1.0, NAN]])


def test_shards_merged_by_sum_equal_one_process_exactly():
    generator = torch.Generator().manual_seed(2)
    prediction, target = torch.randint(0, 3, (2, 15, 12, 10), generator=generator)
    prediction[3], target[7] = 0, 0
    whole, first, second = (SurfaceDistance(TISSUE, one_sided="worst") for _ in range(3))
    whole.update(prediction, target)
    second.update(prediction[4:], target[4:])
    for n in reversed(range(4)):
        first.update(prediction[n : n + 1], target[n : n + 1])
    for name, state in second.metric_state.items():
        assert state.dtype == torch.int64
        setattr(first, name, getattr(first, name) + state)
    expected = whole.compute()
    assert all(torch.equal(value, expected[name]) for name, value in first.compute().items())
    per_frame = surface_scores(prediction, target, TISSUE, one_sided="worst")
    np.testing.assert_allclose(expected["hd95_px"], per_frame["hd95_px"].mean(dim=0), atol=1e-7)
    np.testing.assert_allclose(expected["nsd"], per_frame["nsd"].mean(dim=0), atol=1e-7)


def test_no_frame_at_all_is_nan():
    metric = SurfaceDistance(TISSUE)
    metric.update(torch.zeros(0, 4, 4, dtype=torch.long), torch.zeros(0, 4, 4, dtype=torch.long))
    assert metric.compute()["nsd"].isnan().all()


def test_the_rules_are_told_and_wrong_choices_refused():
    metric = SurfaceDistance(NERVE, tolerance_px=3, one_sided="worst")
    assert "at 3 pixels" in metric.describe() and "frame's diagonal" in metric.describe()
    assert repr(metric) == "SurfaceDistance(nerve, tolerance_px=3, one_sided=worst)"
    with pytest.raises(ValueError, match="tolerance_px is -1"):
        SurfaceDistance(NERVE, tolerance_px=-1)
    with pytest.raises(ValueError, match="one_sided is 'zero'"):
        SurfaceDistance(NERVE, one_sided="zero")
    with pytest.raises(ValueError, match="label id 7"):
        metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 7))
