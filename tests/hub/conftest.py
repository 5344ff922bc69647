from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spinevision.hub.folder import ModelConfig


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        architecture="UNet",
        arguments={"width": 8, "kernel": (3, 3), "norm": None},
        labels=("nerve",),
        preprocess={"size": [256, 256], "mean": [0.485, 0.456, 0.406]},
        threshold=0.4,
        temperature=2.5,
        threshold_rule="the best of all",
        license="cc-by-4.0",
        provenance={"patients": 3},
        library_version="1.2.3",
    )


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"net.weight": torch.randn(40, 30), "net.bias": torch.randn(40), "net.steps": torch.tensor(7)}


@pytest.fixture
def golden() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"input": torch.randn(1, 3, 8, 8), "logits": torch.randn(1, 1, 8, 8)}
