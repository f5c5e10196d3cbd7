"""A custom node for ComfyUI: its own Load LoRA nodes then read native GraLoRA files.

They are k times smaller than the exported LoRA.
It brings no node of its own; it adds a reader to the list that ComfyUI asks about every layer.  That list is
no promised API: where it changes, use comfyui.safetensors, which needs nothing.
"""

import comfy.weight_adapter
import torch

LEAVES = ("gralora_A", "gralora_B", "lora_A", "lora_B", "alpha")


class GraLoRAAdapter(comfy.weight_adapter.WeightAdapterBase):
    """The factors of one layer: gralora_A [k, N/k, r], gralora_B [k, r, M/k].

    A plain lora_A [h, N], lora_B [M, h] may stand beside them.
    """

    name = "gralora"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def load(cls, x, lora, alpha, dora_scale, loaded_keys=None):
        """The adapter of the layer that ComfyUI calls x; in native files it has diffusers' module path."""
        path = x.replace(".processor.to_", ".to_")
        path += ".0" if path.endswith(".to_out") else ""
        factors = {leaf: lora[f"{path}.{leaf}"] for leaf in LEAVES if f"{path}.{leaf}" in lora}
        if not (
            path.startswith(("unet.", "text_encoder"))
            and ({"gralora_A", "gralora_B"} <= set(factors) or {"lora_A", "lora_B"} <= set(factors))
        ):
            return None
        loaded_keys = set() if loaded_keys is None else loaded_keys
        loaded_keys.update(f"{path}.{leaf}" for leaf in factors)
        return cls(loaded_keys, factors)

    def delta(self, device, dtype):
        """[M, N]: block (j, n) is B_jn A_jn^T, with r/k columns each.

        alpha is in the file where it is not the rank.
        """
        f = {leaf: tensor.to(device, dtype) for leaf, tensor in self.weights.items()}
        parts, rank = [], 0
        if "gralora_A" in f:
            (k, n, r), m = f["gralora_A"].shape, f["gralora_B"].shape[2]
            a, b = f["gralora_A"].view(k, n, k, r // k), f["gralora_B"].view(k, k, r // k, m)
            parts.append(torch.einsum("inja,jiam->jmin", a, b).reshape(k * m, k * n))
            rank += r
        if "lora_A" in f:
            parts.append(f["lora_B"] @ f["lora_A"])
            rank += f["lora_A"].shape[0]
        return sum(parts) * (float(f["alpha"]) / rank if "alpha" in f else 1.0)

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        delta = self.delta(weight.device, intermediate_dtype)
        if delta.shape != weight.shape:
            problem = f"the adapter is for a layer of {list(delta.shape)}"
            raise ValueError(f"{key}: {problem}, and the model's is {list(weight.shape)}")
        weight += function((strength * delta).to(weight.dtype))
        return weight

    def h(self, x, base_out):
        """What the layer adds to its output for x [..., N]: [..., M].

        For the nodes that leave weights alone (they set the multiplier).
        """
        return torch.nn.functional.linear(x, self.delta(x.device, x.dtype)) * self.multiplier


if not any(
    adapter.name == GraLoRAAdapter.name
    for adapter in comfy.weight_adapter.adapters
    if hasattr(adapter, "name")
):
    comfy.weight_adapter.adapters.append(GraLoRAAdapter)
NODE_CLASS_MAPPINGS = {}
