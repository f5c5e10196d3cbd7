"""A custom node for ComfyUI: its own Load LoRA nodes then read native GraLoRA files.

They are k times smaller than the exported LoRA.
It brings no node of its own; it adds a reader to the list that ComfyUI asks about every layer.  That list is
not a stable API: if it changes, use the exported LoRA, RUN.safetensors, which needs no custom node.
"""

import comfy.weight_adapter
import torch

ORTHO = ("ortho_A", "ortho_S", "ortho_B", "start_A", "start_S", "start_B")
LEAVES = ("gralora_A", "gralora_B", "lora_A", "lora_B", *ORTHO, "alpha")
KINDS = ({"gralora_A", "gralora_B"}, {"lora_A", "lora_B"}, set(ORTHO))


class GraLoRAAdapter(comfy.weight_adapter.WeightAdapterBase):
    """The factors of one layer: gralora_A [k, N/k, r], gralora_B [k, r, M/k].

    A plain lora_A [h, N], lora_B [M, h] may stand beside them, or alone.  Of a convolution gralora_A is
    [k, C/k, kh, kw, r] and lora_A [h, C, kh, kw].  Ortho-LoRA has ortho_A [r, N], ortho_S [r], ortho_B
    [M, r], and start_A, start_S and start_B, whose product is subtracted.
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
        whole = any(kind <= set(factors) for kind in KINDS)
        if not (path.startswith(("unet.", "text_encoder")) and whole):
            return None
        loaded_keys = set() if loaded_keys is None else loaded_keys
        loaded_keys.update(f"{path}.{leaf}" for leaf in factors)
        return cls(loaded_keys, factors)

    def delta(self, device, dtype):
        """[M, N], or [M, C, kh, kw]: block (j, n) is B_jn A_jn^T, with r/k columns each.

        alpha is in the file where it is not the rank.
        """
        f = {leaf: tensor.to(device, dtype) for leaf, tensor in self.weights.items()}
        parts, rank, kernel = [], 0, ()
        if "gralora_A" in f:
            kernel = f["gralora_A"].shape[2:-1]
            k, _, r = f["gralora_A"].flatten(1, -2).shape
            a, b = f["gralora_A"].reshape(k, -1, k, r // k), f["gralora_B"].reshape(k, k, r // k, -1)
            parts.append(torch.einsum("inja,jiam->jmin", a, b).flatten(2).flatten(0, 1))
            rank += r
        if "lora_A" in f:
            kernel = f["lora_A"].shape[2:]
            parts.append(f["lora_B"] @ f["lora_A"].flatten(1))
            rank += f["lora_A"].shape[0]
        if "ortho_A" in f:
            kernel = f["ortho_A"].shape[2:]
            for name, sign in (("ortho", 1), ("start", -1)):
                A, S, B = (f[f"{name}_{side}"] for side in "ASB")
                parts.append(sign * (B * S) @ A.flatten(1))
            rank += f["ortho_A"].shape[0]
        delta = sum(parts) * (float(f["alpha"]) / rank if "alpha" in f else 1.0)
        return delta.unflatten(1, (-1, *kernel)) if kernel else delta

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
        """What the layer adds to its output for x [..., N]: [..., M], or of a convolution.

        For the nodes that leave weights alone (they set the multiplier, and kw_dict, a convolution's stride
        and the like).
        """
        delta = self.delta(x.device, x.dtype)
        if delta.ndim == 4:
            return torch.nn.functional.conv2d(x, delta, **getattr(self, "kw_dict", {})) * self.multiplier
        return torch.nn.functional.linear(x, delta) * self.multiplier


if not any(
    adapter.name == GraLoRAAdapter.name
    for adapter in comfy.weight_adapter.adapters
    if hasattr(adapter, "name")
):
    comfy.weight_adapter.adapters.append(GraLoRAAdapter)
NODE_CLASS_MAPPINGS = {}
