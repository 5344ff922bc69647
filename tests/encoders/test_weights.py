"""Published weights become ours: all of them, or none and a sentence that names the tensors."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from spinevision.encoders.weights import Conversion, Origin, WeightError, WeightFamily, convert, same_name

WANTED = {"stem.weight": (4, 3), "qkv.weight": (6, 2), "norm.bias": (4,), "norm.num_batches_tracked": ()}


def fused(name: str, shape: tuple[int, ...]) -> Origin:
    """A layout that has the stem and the norm under other names and q, k, v apart."""
    if name == "qkv.weight":
        return Origin(("q", "k", "v"), lambda *parts: torch.cat(parts))
    return Origin((name.replace("stem", "patch").replace("norm", "ln"),))


PLAIN = WeightFamily("plain", same_name, unneeded=(r"head\.", "table$"), prefixes=("backbone.", "model."))
APART = WeightFamily("apart", fused, unneeded=("classifier",))


def plain() -> dict[str, Tensor]:
    return {"stem.weight": torch.randn(4, 3), "qkv.weight": torch.randn(6, 2), "norm.bias": torch.randn(4)}


def apart() -> dict[str, Tensor]:
    return {
        "patch.weight": torch.randn(4, 3),
        "q": torch.randn(2, 2),
        "k": torch.randn(2, 2),
        "v": torch.randn(2, 2),
        "ln.bias": torch.randn(4),
    }


def renamed(published: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new if name == old else name: tensor for name, tensor in published.items()}


def refusal(published: dict[str, Tensor], *families: WeightFamily) -> str:
    with pytest.raises(WeightError) as caught:
        convert(published, WANTED, families)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "nothing was loaded" in sentence
    return sentence


def test_every_name_of_both_sides_is_accounted_for() -> None:
    published = plain() | {"head.weight": torch.randn(9, 4), "norm.num_batches_tracked": torch.tensor(7)}
    conversion = convert(published, WANTED, [PLAIN])
    assert set(conversion.tensors) == {"stem.weight", "qkv.weight", "norm.bias"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in conversion.tensors.items())
    assert conversion == Conversion(
        "plain", conversion.tensors, ("norm.bias", "qkv.weight", "stem.weight"), ("head.weight", "norm.num_batches_tracked")
    )


def test_one_of_ours_is_made_of_several_in_their_order() -> None:
    published = apart()
    conversion = convert(published, WANTED, [APART])
    assert torch.equal(conversion.tensors["qkv.weight"], torch.cat([published["q"], published["k"], published["v"]]))
    assert torch.equal(conversion.tensors["norm.bias"], published["ln.bias"])
    assert set(conversion.used) == set(published)


def test_an_origin_is_told_the_shape_that_is_wanted() -> None:
    cut = WeightFamily("cut", lambda name, shape: Origin((name,), lambda tensor: tensor[: shape[0]]))
    longer = plain() | {"norm.bias": torch.arange(6.0)}
    assert convert(longer, WANTED, [cut]).tensors["norm.bias"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("families", [(PLAIN, APART), (APART, PLAIN)])
def test_the_layout_is_recognised_among_several(families: tuple[WeightFamily, ...]) -> None:
    assert convert(plain(), WANTED, families).family == "plain"
    assert convert(apart(), WANTED, families).family == "apart"


@pytest.mark.parametrize("prefix", ["", "backbone.", "model."])
def test_a_prefix_may_stand_before_every_name_or_those_that_matter(prefix: str) -> None:
    published = plain() | {"norm.num_batches_tracked": torch.tensor(7), "head.weight": torch.randn(2, 4)}
    published = {prefix + name: tensor for name, tensor in published.items()} | {"head.bias": torch.randn(2)}
    conversion = convert(published, WANTED, [APART, PLAIN])
    assert conversion.tensors["stem.weight"] is published[f"{prefix}stem.weight"]
    assert conversion.used == tuple(f"{prefix}{name}" for name in ("norm.bias", "qkv.weight", "stem.weight"))
    assert set(conversion.unused) == {"head.bias", f"{prefix}head.weight", f"{prefix}norm.num_batches_tracked"}


def test_a_foreign_prefix_is_not_guessed() -> None:
    sentence = refusal({f"network.{name}": tensor for name, tensor in plain().items()}, PLAIN)
    assert "missing stem.weight, qkv.weight, norm.bias; not known network.stem.weight" in sentence


@pytest.mark.parametrize("name", list(plain()))
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_one_renamed_tensor_is_reported_by_name(name: str, prefix: str) -> None:
    published = {prefix + key: tensor for key, tensor in plain().items()}
    sentence = refusal(renamed(published, prefix + name, f"{prefix}{name}_"), PLAIN)
    assert f"in the layout plain: missing {prefix}{name}; not known {prefix}{name}_; " in sentence


def test_among_several_layouts_the_nearest_reports_the_renamed_tensor() -> None:
    sentence = refusal(renamed(apart(), "k", "key"), PLAIN, APART)
    assert "in the layout apart, the nearest of plain, apart: missing k; not known key; " in sentence


def test_a_missing_or_strange_tensor_alone_is_enough() -> None:
    published = plain()
    del published["norm.bias"]
    assert ": missing norm.bias; nothing" in refusal(published, PLAIN)
    assert ": not known stem2.weight; nothing" in refusal(plain() | {"stem2.weight": torch.randn(4, 3)}, PLAIN)


def test_unneeded_is_matched_from_the_beginning_of_a_name() -> None:
    spare = torch.randn(1)
    assert convert(plain() | {"head.0.bias": spare, "table": spare}, WANTED, [PLAIN]).unused == ("head.0.bias", "table")
    assert "not known last.head.bias, header, tables;" in refusal(
        plain() | {"last.head.bias": spare, "header": spare, "tables": spare}, PLAIN
    )


def test_another_shape_is_reported_with_both_shapes() -> None:
    sentence = refusal(plain() | {"stem.weight": torch.randn(3, 4)}, PLAIN)
    assert "of another shape stem.weight for stem.weight, [3, 4] where [4, 3] is expected; nothing" in sentence
    sentence = refusal(apart() | {"v": torch.randn(3, 2)}, APART)
    assert "of another shape q and k and v for qkv.weight, [7, 2] where [6, 2] is expected; nothing" in sentence


def test_parts_that_do_not_go_together_are_reported() -> None:
    assert "of another shape q and k and v for qkv.weight" in refusal(apart() | {"v": torch.randn(2, 3)}, APART)
    flat = WeightFamily("flat", lambda name, _: Origin((name,), lambda tensor: tensor.flatten(1)))
    assert "of another shape norm.bias for norm.bias" in refusal(plain(), flat)


def test_whole_numbers_are_not_weights() -> None:
    sentence = refusal(plain() | {"stem.weight": torch.ones(4, 3, dtype=torch.int8)}, PLAIN)
    assert "stem.weight for stem.weight, [4, 3] of torch.int8 where [4, 3] is expected" in sentence


def test_a_long_list_is_cut_with_a_count() -> None:
    spare = {f"layer{index}": torch.randn(1) for index in range(10)}
    sentence = refusal(plain() | spare, PLAIN)
    assert re.search(r"not known layer0, layer1, layer2 and 7 more;", sentence)


def test_weights_of_something_else_and_no_weights_are_refused() -> None:
    assert "missing stem.weight, qkv.weight, norm.bias; nothing" in refusal({}, PLAIN)
    assert "not known a" in refusal({"a": torch.randn(1)}, PLAIN, APART)


def test_nothing_to_fill_is_refused_rather_than_done() -> None:
    for wanted, families in (({}, [PLAIN]), ({"norm.num_batches_tracked": ()}, [PLAIN]), (WANTED, [])):
        with pytest.raises(WeightError, match="no part that published weights could fill"):
            convert(plain(), wanted, families)
