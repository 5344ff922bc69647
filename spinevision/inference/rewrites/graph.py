"""What a network computes, seen from its modules: read off the graph that ``torch.export`` makes of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

_CONVOLUTIONS = {torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding, torch.ops.aten.conv_transpose2d.input}
_NORMALIZATION = torch.ops.aten.batch_norm.default


class NetworkGraph:
    """The graph of ``network(example)``; nothing is computed, shapes alone are followed.

    Args:
        network: in eval mode.
        example: an input of it.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        with torch.no_grad():
            program = torch.export.export(network, (example,))
        signature = program.graph_signature
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._nodes = [*program.graph.nodes]

    def folds(self) -> Iterator[tuple[str, str]]:
        """Names of a convolution and a batch normalisation that only ever occur one behind the other, with nothing between them."""
        behind: dict[str, set[str]] = defaultdict(set)
        before: dict[str, set[str]] = defaultdict(set)
        for node in self._nodes:
            if node.target in _CONVOLUTIONS:
                name, users = self._module(node, 1, "weight"), [*node.users]
                alone = len(users) == 1 and users[0].target is _NORMALIZATION and users[0].args[0] is node
                behind[name].add(self._module(users[0], 3, "running_mean") if alone else "")
            elif node.target is _NORMALIZATION:
                source = node.args[0]
                convolved = isinstance(source, fx.Node) and source.target in _CONVOLUTIONS
                before[self._module(node, 3, "running_mean")].add(self._module(source, 1, "weight") if convolved else "")
        for name, norms in behind.items():
            norm = next(iter(norms))
            if name and norm and norms == {norm} and before[norm] == {name}:
                yield name, norm

    def unused(self) -> set[str]:
        """Names of the parameters and buffers that no result comes from."""
        return {self._names[node.name] for node in self._nodes if node.name in self._names and not node.users}

    def _module(self, node: fx.Node, index: int, tensor: str) -> str:
        """The module whose tensor of this name is an argument of a node; empty for a tensor that is computed."""
        argument = node.args[index]
        name = self._names.get(argument.name, "") if isinstance(argument, fx.Node) else ""
        return name.removesuffix(f".{tensor}") if name.endswith(f".{tensor}") else ""


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
