"""The published layout of vision transformers: every tensor, the same outputs, the position table, a renamed one by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from spinevision.encoders.vit import VIT_WEIGHTS
from spinevision.encoders.weights import WeightError, convert
from spinevision.models.transunet import TransUNet

KINDS = ("weight", "bias")
PARTS = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense", "attention.output.dense")
LAYER = (*PARTS, *(f"attention.attention.{part}" for part in ("query", "key", "value")))
LEFT = {"embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.projection.bias"}


def layout() -> set[str]:
    """What of ``google/vit-base-patch16-224-in21k`` goes into a transformer of two layers, written down."""
    names = {f"encoder.layer.{layer}.{part}.{kind}" for layer in range(2) for part in LAYER for kind in KINDS}
    return names | {f"layernorm.{kind}" for kind in KINDS} | {"embeddings.position_embeddings"}


def publish(kind: type[ViTModel] | type[ViTForImageClassification], path: Path) -> dict[str, Tensor]:
    """A ViT of the size of ``TransUNet.SMALL``, made for 64x64, as transformers publishes it."""
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=64, num_labels=3
    )
    model = kind(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return load_file(path / "model.safetensors")


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Tensor]:
    return publish(ViTModel, tmp_path)


def wanted(model: TransUNet) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.network.state_dict().items() if name.startswith("transformer.")}


def small(image_size: int = 64) -> TransUNet:
    return TransUNet(["nerve"], **{**TransUNet.SMALL, "image_size": image_size}).eval()


def by_torch(published: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Tokens (B, N, 32) through the published layers as torch has them."""
    for layer in range(2):
        own = {name.removeprefix(f"encoder.layer.{layer}."): t for name, t in published.items() if f"layer.{layer}." in name}
        state = {}
        for kind in KINDS:
            fused = [own[f"attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(fused)
            pairs = zip(("norm1", "norm2", "linear1", "linear2", "self_attn.out_proj"), PARTS, strict=True)
            state |= {f"{theirs}.{kind}": own[f"{part}.{kind}"] for theirs, part in pairs}
        reference = nn.TransformerEncoderLayer(
            32, 4, 128, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        reference.load_state_dict(state)
        tokens = reference.eval()(tokens)
    return nn.functional.layer_norm(tokens, (32,), published["layernorm.weight"], published["layernorm.bias"], 1e-6)


def test_every_published_tensor_of_the_transformer_is_used(published: dict[str, Tensor]) -> None:
    conversion = convert(published, wanted(small()), small().WEIGHTS)
    assert set(conversion.used) == layout()
    assert set(conversion.unused) == LEFT | {"pooler.dense.weight", "pooler.dense.bias"}


def test_the_filled_transformer_computes_what_the_published_one_does(published: dict[str, Tensor], tmp_path: Path) -> None:
    model = small()
    rest = {name: t.clone() for name, t in model.network.state_dict().items() if not name.startswith("transformer.")}
    model.load_encoder(tmp_path / "model.safetensors")
    x = torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        tokens = x.reshape(2, 32, 16).permute(0, 2, 1) + published["embeddings.position_embeddings"][:, 1:]
        expected = by_torch(published, tokens).permute(0, 2, 1).reshape(2, 32, 4, 4)
        torch.testing.assert_close(model.network.transformer(x), expected)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in rest.items())


def test_positions_lose_the_class_token_and_are_interpolated_to_the_tokens_of_the_model(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    rows = published["embeddings.position_embeddings"][0, 1:]
    model = small(image_size=96)
    model.load_encoder(tmp_path / "model.safetensors")
    expected = ndimage.zoom(rows.reshape(4, 4, 32).numpy(), (1.5, 1.5, 1), order=1).reshape(1, 36, 32)
    np.testing.assert_allclose(model.network.transformer.positions.detach().numpy(), expected, atol=1e-5)
    model = small(image_size=64)
    model.load_encoder(tmp_path / "model.safetensors")
    assert torch.equal(model.network.transformer.positions[0], rows)


def test_a_classifier_with_its_prefix_fills_it_too(tmp_path: Path) -> None:
    published = publish(ViTForImageClassification, tmp_path)
    conversion = convert(published, wanted(small()), small().WEIGHTS)
    assert set(conversion.used) == {f"vit.{name}" for name in layout()}
    assert set(conversion.unused) == {f"vit.{name}" for name in LEFT} | {"classifier.weight", "classifier.bias"}


def test_the_published_table_of_197_rows_fits_the_default_size() -> None:
    table = torch.arange(197.0).reshape(1, 197, 1).expand(1, 197, 4)
    origin = VIT_WEIGHTS[0].origin("transformer.positions", (1, 196, 4))
    assert origin.names == ("embeddings.position_embeddings",)
    assert origin.combine is not None
    assert torch.equal(origin.combine(table)[0, :, 0], torch.arange(1.0, 197.0))


def test_a_renamed_tensor_is_reported_by_both_names_and_nothing_is_loaded(published: dict[str, Tensor], tmp_path: Path) -> None:
    name = "encoder.layer.1.attention.attention.key.bias"
    published["encoder.layer.1.attention.attention.keys.bias"] = published.pop(name)
    save_file(published, tmp_path / "renamed.safetensors")
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightError, match=rf"missing {name}; not known \S+\.keys\.bias"):
        model.load_encoder(tmp_path / "renamed.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_deeper_or_another_table_is_refused(published: dict[str, Tensor]) -> None:
    shallow = TransUNet(["nerve"], **{**TransUNet.SMALL, "layers": 1})
    with pytest.raises(WeightError, match=r"not known encoder\.layer\.1\."):
        convert(published, wanted(shallow), shallow.WEIGHTS)
    published["embeddings.position_embeddings"] = torch.zeros(1, 16, 32)  # 15 rows without the class token are no square
    with pytest.raises(WeightError, match=r"of another shape embeddings\.position_embeddings"):
        convert(published, wanted(small()), small().WEIGHTS)
