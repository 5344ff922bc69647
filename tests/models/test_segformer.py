"""SegFormer: published sizes, the wiring around the blocks of transformers, the names it is saved under, and what it refuses."""

from __future__ import annotations

import pickle

import pytest
import torch
from network_checks import count
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from spinevision.models.segformer import SegFormer, SegFormerNetwork


def small(out_channels: int = 2, **arguments: float) -> SegFormerNetwork:
    network = SegFormerNetwork(out_channels, **{**SegFormer.SMALL, **arguments})
    for parameter in network.parameters():  # of a size at which an error in the wiring is seen
        nn.init.normal_(parameter, std=0.3)
    nn.init.uniform_(network.head.batch_norm.running_var, 0.5, 1.5)
    nn.init.normal_(network.head.batch_norm.running_mean)
    network.eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64)).std(dim=(2, 3)).min() > 0.02  # a constant answer would pass any comparison
    return network


@pytest.mark.parametrize(("variant", "parameters"), [("b0", 3_714_401), ("b1", 13_677_505)])
def test_one_class_has_the_published_parameter_count(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(SegFormerNetwork(variant=variant)) == parameters


@pytest.mark.parametrize(
    ("variant", "millions"), [("b0", 3.8), ("b1", 13.7), ("b2", 27.5), ("b3", 47.3), ("b4", 64.1), ("b5", 84.7)]
)
def test_every_variant_has_the_size_of_the_paper_at_150_classes(variant: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(count(SegFormerNetwork(150, variant)) / 1e6, 1) == millions


def transformers_network(network: SegFormerNetwork) -> SegformerForSemanticSegmentation:
    """The network of transformers with the same weights and plain attention."""
    config = SegformerConfig(hidden_sizes=[8, 16, 40, 64], decoder_hidden_size=32, num_labels=2, attn_implementation="eager")
    reference = SegformerForSemanticSegmentation(config)
    names = {"encoder.": "segformer.stages.", "head.": "decode_head."}
    state = network.state_dict()
    for ours, theirs in names.items():
        state = {theirs + key.removeprefix(ours) if key.startswith(ours) else key: tensor for key, tensor in state.items()}
    reference.load_state_dict(state)
    return reference.eval()


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (70, 101)])
def test_logits_are_those_of_transformers_resized(size: tuple[int, int]) -> None:
    network, x = small(), torch.randn(2, 3, *size)
    with torch.no_grad():
        quarter = transformers_network(network)(x).logits
        assert quarter.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
        expected = F.interpolate(quarter, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(x), expected)


def test_a_frame_with_a_short_side_is_padded_to_multiples_of_64() -> None:
    network, x = small(), torch.randn(1, 3, 20, 90)
    padded = torch.cat((x, x[:, :, -1:].expand(-1, -1, 44, -1)), dim=2)
    padded = torch.cat((padded, padded[..., -1:].expand(-1, -1, -1, 38)), dim=3)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[..., :20, :90])


def test_every_attention_of_a_single_pixel_has_four_keys_to_choose_from() -> None:
    network = small()
    keys: list[int] = []
    for name, module in network.named_modules():
        if name.endswith("k_proj"):
            module.register_forward_hook(lambda _, __, tokens: keys.append(tokens.shape[1]))
    network(torch.randn(1, 3, 1, 1))
    assert keys == [4] * 8


def test_tensors_are_saved_under_names_that_published_models_rely_on() -> None:
    names = set(SegFormerNetwork(**SegFormer.SMALL).state_dict())
    assert len(names) == 192 + 16  # encoder and head
    kinds = ("weight", "bias")
    block = "layernorm_before layernorm_after attention.q_proj attention.k_proj attention.v_proj attention.o_proj mlp.fc1 mlp.fc2"
    reduction = "attention.sequence_reduction.sequence_reduction attention.sequence_reduction.layer_norm mlp.dwconv.dwconv"
    expected = {f"encoder.2.blocks.1.{part}.{kind}" for part in f"{block} {reduction}".split() for kind in kinds}
    expected |= {f"encoder.3.{part}.{kind}" for part in ("patch_embeddings.proj", "layer_norm") for kind in kinds}
    expected |= {f"head.{part}.{kind}" for part in ("linear_projections.3.proj", "batch_norm", "classifier") for kind in kinds}
    assert expected | {"head.linear_fuse.weight"} <= names


def test_only_the_classifier_depends_on_the_classes() -> None:
    one, three = (SegFormerNetwork(classes, **SegFormer.SMALL).state_dict() for classes in (1, 3))
    assert list(one) == list(three)
    changed = [name for name in one if one[name].shape != three[name].shape]
    assert changed == ["head.classifier.weight", "head.classifier.bias"]
    assert all(name.startswith(SegFormer.HEAD) for name in changed)


def test_chance_is_where_the_arguments_say() -> None:
    def differs(drop_path: float, dropout: float) -> bool:
        network, x = small(drop_path=drop_path, dropout=dropout).train(), torch.randn(2, 3, 64, 64)
        return not torch.equal(network(x), network(x))

    assert [differs(0, 0), differs(0.9, 0), differs(0, 0.9)] == [False, True, True]


def test_width_scales_all_stages_and_half_the_width_is_a_smaller_b0() -> None:
    network = SegFormerNetwork(width=16)
    assert [stage.layer_norm.normalized_shape[0] for stage in network.encoder] == [16, 32, 80, 128]
    assert count(network) < 3_714_401 / 3


def test_survives_a_copy_to_another_process() -> None:
    network, x = small(), torch.randn(1, 3, 64, 64)
    copy: SegFormerNetwork = pickle.loads(pickle.dumps(network))
    assert torch.equal(copy(x), network(x))


def test_one_frame_of_one_coarsest_pixel_is_no_training_batch() -> None:
    network = small().train()
    with pytest.raises(ValueError, match="cannot train on one frame of 32x32 pixels"):
        network(torch.randn(1, 3, 32, 32))
    for frames in (torch.randn(1, 3, 32, 33), torch.randn(2, 3, 32, 32)):
        logits: Tensor = network(frames)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"variant": "b6"}, "variant must be one of b0, b1, b2, b3, b4, b5, found 'b6'"),
        ({"width": 0}, "width must be None or a whole number from 1 to 1024, found 0"),
        ({"decoder_width": 2000}, "decoder_width must be None or a whole number from 1 to 1024, found 2000"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, found 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, found -0.1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SegFormer(["nerve"], **arguments)
