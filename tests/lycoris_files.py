"""Layers adapted by LyCORIS itself: what it stores of them, and the weights that it computes."""

import copy
import importlib
from typing import NamedTuple

import torch
from torch import nn

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
DORA = dict(weight_decompose=True)
KINDS = {  # {name: (module of lycoris, its class, options, whether for a convolution)}
    "LoRA": ("locon", "LoConModule", {}, False),
    "LoCon": ("locon", "LoConModule", {}, True),
    "LoCon, Tucker": ("locon", "LoConModule", dict(use_tucker=True), True),
    "DoRA": ("locon", "LoConModule", DORA, False),
    "DoRA of the inputs": ("locon", "LoConModule", DORA | dict(wd_on_out=False), False),
    "DoRA, conv": ("locon", "LoConModule", DORA, True),
    "DoRA of the inputs, conv": ("locon", "LoConModule", DORA | dict(wd_on_out=False), True),
    "LoHa": ("loha", "LohaModule", {}, False),
    "LoHa, conv": ("loha", "LohaModule", {}, True),
    "LoHa, Tucker": ("loha", "LohaModule", dict(use_tucker=True), True),
    "LoHa, DoRA": ("loha", "LohaModule", DORA, False),
    "LoKr": ("lokr", "LokrModule", {}, False),
    "LoKr, both factored": ("lokr", "LokrModule", dict(decompose_both=True, lora_dim=2, alpha=3.0), False),
    "LoKr, whole": ("lokr", "LokrModule", dict(full_matrix=True), False),
    "LoKr, conv": ("lokr", "LokrModule", {}, True),
    "LoKr, Tucker": ("lokr", "LokrModule", dict(use_tucker=True), True),
    "LoKr, DoRA": ("lokr", "LokrModule", DORA, False),
    "GLoRA": ("glora", "GLoRAModule", {}, False),
    "GLoRA, conv": ("glora", "GLoRAModule", {}, True),
    "OFT": ("diag_oft", "DiagOFTModule", {}, False),
    "OFT, rescaled": ("diag_oft", "DiagOFTModule", dict(rescaled=True), False),
    "OFT, constrained": ("diag_oft", "DiagOFTModule", dict(constraint=1e-3), False),
    "OFT, conv": ("diag_oft", "DiagOFTModule", {}, True),
    "BOFT": ("boft", "ButterflyOFTModule", {}, False),
    "BOFT, rescaled": ("boft", "ButterflyOFTModule", dict(rescaled=True), False),
    "BOFT, conv": ("boft", "ButterflyOFTModule", {}, True),
    "IA3": ("ia3", "IA3Module", {}, False),
    "IA3 of the inputs": ("ia3", "IA3Module", dict(train_on_input=True), False),
    "full": ("full", "FullModule", {}, False),
    "full, conv": ("full", "FullModule", {}, True),
}


class Stored(NamedTuple):
    """tensors: {key: tensor} of a file; layer: the plain one; x, y: input and output of the adapted layer."""

    tensors: dict[str, torch.Tensor]
    layer: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def stored_by_lycoris(kind: str) -> Stored:
    """One layer with random factors that are not zero, and alpha that is not the rank."""
    module, name, options, is_conv = KINDS[kind]
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 64, 3, padding=1) if is_conv else nn.Linear(48, 64)
    x = torch.randn(2, 48, 5, 5) if is_conv else torch.randn(7, 48)
    options = dict(lora_dim=4, alpha=2.0) | options
    key = CONV if is_conv else LINEAR
    make = getattr(importlib.import_module(f"lycoris.modules.{module}"), name)
    adapted = make(key, copy.deepcopy(layer), **options)
    if module == "full":
        adapted.apply_to()
    with torch.no_grad():
        for leaf, parameter in adapted.named_parameters():
            if "rescale" in leaf or "dora_scale" in leaf:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif module == "full":
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter))
        y = adapted.eval().forward(x).detach()
    tensors = {f"{key}.{leaf}": t.detach().clone() for leaf, t in adapted.state_dict().items()}
    return Stored(tensors, layer, x, y)
