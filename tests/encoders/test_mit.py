"""The published layout of Mix Transformers: every tensor, the same outputs as transformers, and a renamed one by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForImageClassification, SegformerModel

from spinevision.encoders.mit import MIT_WEIGHTS
from spinevision.encoders.weights import WeightError, convert
from spinevision.models.segformer import SegFormer

KINDS = ("weight", "bias")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image classifier of the size of ``SegFormer.SMALL`` as transformers publishes it."""
    model = SegformerForImageClassification(SegformerConfig(hidden_sizes=[8, 16, 40, 64], num_labels=7))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("mit")
    model.save_pretrained(path)
    return path


@pytest.fixture
def published(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def wanted(model: SegFormer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.network.state_dict().items() if name.startswith("encoder.")}


def layout() -> set[str]:
    """The names of ``nvidia/mit-b0``, written down."""
    names = set()
    for stage in range(4):
        names |= {f"patch_embeddings.{stage}.{part}" for part in ("proj", "layer_norm")} | {f"layer_norm.{stage}"}
        parts = ["layer_norm_1", "layer_norm_2", "mlp.dense1", "mlp.dwconv.dwconv", "mlp.dense2", "attention.output.dense"]
        parts += [f"attention.self.{part}" for part in ("query", "key", "value")]
        parts += [f"attention.self.{part}" for part in ("sr", "layer_norm")] if stage < 3 else []
        names |= {f"block.{stage}.{block}.{part}" for block in range(2) for part in parts}
    return {f"segformer.encoder.{name}.{kind}" for name in names for kind in KINDS}


def test_every_published_tensor_is_used_and_the_classifier_left(published: dict[str, Tensor]) -> None:
    assert set(published) == layout() | {"classifier.weight", "classifier.bias"}
    conversion = convert(published, wanted(SegFormer(["nerve"], **SegFormer.SMALL)), MIT_WEIGHTS)
    assert set(conversion.used) == layout()
    assert conversion.unused == ("classifier.bias", "classifier.weight")


def test_the_filled_encoder_computes_what_transformers_computes(folder: Path) -> None:
    model = SegFormer(["nerve"], **SegFormer.SMALL).eval()
    head = {name: tensor.clone() for name, tensor in model.network.head.state_dict().items()}
    model.load_encoder(folder / "model.safetensors")
    x = torch.randn(2, 3, 64, 96)
    reference = SegformerModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()
    with torch.no_grad():
        expected, y = reference(x).last_hidden_state, x
        for stage in model.network.encoder:
            y = stage(y)
    torch.testing.assert_close(y, expected)
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.network.head.state_dict().items())


def test_a_file_without_the_prefix_or_with_a_decoder_fills_it_too(published: dict[str, Tensor]) -> None:
    bare = {name.removeprefix("segformer."): tensor for name, tensor in published.items()}
    segmenter = {name: tensor for name, tensor in published.items() if not name.startswith("classifier.")}
    segmenter["decode_head.linear_c.0.proj.weight"] = torch.zeros(32, 8)
    shapes = wanted(SegFormer(["nerve"], **SegFormer.SMALL))
    first, *others = (convert(source, shapes, MIT_WEIGHTS).tensors for source in (published, bare, segmenter))
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_renamed_tensor_is_reported_by_both_names_and_nothing_is_loaded(published: dict[str, Tensor], tmp_path: Path) -> None:
    name = "segformer.encoder.block.1.0.attention.self.sr.weight"
    published["segformer.encoder.block.1.0.attention.self.shrink.weight"] = published.pop(name)
    save_file(published, tmp_path / "model.safetensors")
    model = SegFormer(["nerve"], **SegFormer.SMALL)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightError, match=rf"missing {name}; not known \S+\.self\.shrink\.weight"):
        model.load_encoder(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_another_width_is_refused(published: dict[str, Tensor]) -> None:
    with pytest.raises(WeightError, match="of another shape"):
        convert(published, wanted(SegFormer(["nerve"], width=16)), MIT_WEIGHTS)
