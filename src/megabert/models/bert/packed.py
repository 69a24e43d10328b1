"""A model that only answers, on a CPU: its matrices laid out once as oneDNN's products read them.

PyTorch lays a weight out anew in each call. Where weights do not change any more that work is done before the first
answer, and the activation of an MLP is computed as its product leaves the registers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megabert.models.bert.layers import MegatronBertIntermediate
from megabert.models.cpu_linear import Linear, has_product, product


class PackedLinear(nn.Module):
    """The product of a `Linear` whose weight does not change any more; it has no parameters and no way back.

    Args:
        activation: as for `cpu_linear.product`.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.activation = activation
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.weight = weight.to("meta")  # its format and shape, for whoever asks
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not input.numel():
            return input.new_empty(*input.shape[:-1], self.out_features)
        return product(input, self.packed, self.bias, self.activation)


def pack(model: nn.Module) -> None:
    """Let a model answer faster from now on, where this processor can; it can then not be trained, moved or saved.

    A weight that serves elsewhere too (the vocabulary's, tied to its table) stays as it is.
    """
    users: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            users[id(weight)] = users.get(id(weight), 0) + 1
    for module in list(model.modules()):
        if isinstance(module, MegatronBertIntermediate) and _packs(module.dense) and module.has_gelu():
            module.dense = PackedLinear(module.dense, "gelu")  # type: ignore[assignment]
            module.intermediate_act_fn = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and _packs(child) and users[id(child.weight)] == 1:
                setattr(module, name, PackedLinear(child))


def _packs(module: nn.Linear) -> bool:
    """Whether oneDNN makes this module's products."""
    return module.weight.device.type == "cpu" and has_product(module.weight.dtype)
