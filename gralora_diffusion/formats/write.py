"""An Adapter into files: the native one, diffusers' own, and one for ComfyUI, A1111, Forge and kohya."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from gralora_diffusion import __version__
from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.kinds import KINDS
from gralora_diffusion.adapters.low_rank import without_cancellation
from gralora_diffusion.files import resolved
from gralora_diffusion.formats.adapter_state import Adapter, Factors, wide
from gralora_diffusion.formats.conv_factors import as_matrices, kernel_of, with_kernel, with_kernels
from gralora_diffusion.formats.kohya_header import as_utf8, facts_text, kohya_header, public_facts
from gralora_diffusion.formats.layer_names import kohya
from gralora_diffusion.formats.read import HEADER
from gralora_diffusion.formats.safetensors_files import write_safetensors
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.sdxl.load import COMPONENTS

EARLIER = "comfyui.safetensors"  # the name that earlier versions gave the file for other tools
KOHYA = "pytorch_lora_weights_kohya.safetensors"


Contents = tuple[dict[str, torch.Tensor], dict[str, str]]  # the tensors and the header of a .safetensors file


def write_native(path: str | Path, adapter: Adapter, dtype=torch.float32) -> None:
    """The file of native_contents(), complete or absent.  Raises ConfigError for a kind that needs fp32."""
    try:
        contents = native_contents(adapter, dtype)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    write_safetensors(path, *contents)


def native_contents(adapter: Adapter, dtype=torch.float32) -> Contents:
    """Tensors COMPONENT.MODULE_PATH.LEAF, header: JSON with the AdapterConfig and the facts.

    Leaves: gralora_A [k, N/k, r], gralora_B [k, r, M/k], lora_A [r, N], lora_B [M, r], or those of another
    kind, with a kernel's dimensions as in Adapter; and where the scale is not 1 an alpha = scale * rank, for
    readers that do not read headers.  Raises ConfigError for a kind that needs fp32.
    """
    method = adapter.config.method
    if KINDS[method].needs_fp32 and dtype.itemsize < 4:
        problem = f"the native file of an adapter of the kind {method} cannot be in half precision"
        reason = "it holds two nearly equal products, whose difference would be lost"
        raise ConfigError(f"{problem}, since {reason}: use fp32 or another format")
    tensors = {}
    for component, module_path, factors in adapter.items():
        if dtype.itemsize < 4:
            factors = to_be_rounded(factors)
        for leaf, tensor in factors.items():
            tensors[f"{component}.{module_path}.{leaf}"] = stored(tensor, dtype)
        scale = adapter.scale(module_path, factors)
        if scale != 1:
            alpha = scale * adapter.rank(module_path, factors)
            tensors[f"{component}.{module_path}.alpha"] = torch.tensor(alpha)
    header = dict(version=__version__, config=to_dict(adapter.config)) | public_facts(adapter)
    return tensors, {HEADER: as_utf8(json.dumps(header, ensure_ascii=False))}


def stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor as a file holds it; one on the meta device stays there, of which only the size is asked."""
    return tensor.to("meta" if tensor.is_meta else "cpu", dtype).contiguous()


def to_be_rounded(factors: Factors) -> Factors:
    """Those of a plain LoRA without terms that cancel, as a difference of adapters has; others unchanged."""
    if set(factors) != {"lora_A", "lora_B"}:
        return factors
    matrices = {leaf: wide(tensor) for leaf, tensor in as_matrices(factors).items()}
    down, up = without_cancellation(matrices["lora_A"], matrices["lora_B"])
    if down is matrices["lora_A"]:
        return factors
    return with_kernel(dict(lora_A=down, lora_B=up), kernel_of(factors))


def write_diffusers(path: str | Path, adapter: Adapter, dtype=torch.float32) -> None:
    """The file of diffusers_contents(), complete or absent."""
    write_safetensors(path, *diffusers_contents(adapter, dtype))


def diffusers_contents(adapter: Adapter, dtype=torch.float32) -> Contents:
    """unet.PATH.lora_A.weight [R, N], .lora_B.weight [M, R]; of a convolution [R, C, kh, kw], [M, R, 1, 1].

    No alpha is written, so diffusers takes alpha = rank.
    """
    tensors = {}
    for component, module_path, down, up in as_pairs(adapter, dtype):
        tensors[f"{component}.{module_path}.lora_A.weight"] = stored(down, dtype)
        tensors[f"{component}.{module_path}.lora_B.weight"] = stored(up, dtype)
    return tensors, {"format": "pt", "gralora.facts": facts_text(adapter)}


def write_comfyui(path: str | Path, adapter: Adapter, dtype=torch.float16, sgm: bool = True) -> None:
    """The file of comfyui_contents(), complete or absent; its title is the file's name."""
    path = resolved(Path(path))
    in_run = path.name in (EARLIER, KOHYA)  # whose folder has a better name than the file
    title = path.parent.name if in_run else path.stem
    try:
        contents = comfyui_contents(adapter, dtype, title, sgm)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    write_safetensors(path, *contents)


def comfyui_contents(adapter: Adapter, dtype: torch.dtype, title: str, sgm: bool = True) -> Contents:
    """One file for ComfyUI, A1111, Forge, kohya's scripts and diffusers, in kohya's names.

    The UNet's names are in SGM style, or diffusers' without `sgm`.  Each layer has its own rank, and each
    model one alpha, its largest rank, since diffusers gives layers a wrong scale where alphas differ; a power
    of two is moved from down to up, so that both keep their digits in fp16.  The header is that of
    kohya_header().  Raises ConfigError for a layer without a name there.
    """
    layers_per_block = adapter.facts.get("layers_per_block", 2) if sgm else None
    ranks = {component: adapter.exported_rank(component) for component in adapter.layers}
    tensors = {}
    for component, module_path, down, up in as_pairs(adapter, dtype):
        try:
            name = kohya(component, module_path, layers_per_block)
        except ValueError as error:
            raise ConfigError(f"{error}, and other tools have no name for it") from None
        alpha = float(ranks[component])
        balance = 1.0 if down.is_meta else balance_of(down, up)
        down, up = down * balance, up * (len(down) / alpha / balance)
        if dtype.itemsize == 1 and not down.is_meta:
            # fp8's range is narrow: both factors are lifted into it, and alpha undoes it
            lift = lift_of(down, up)
            down, up, alpha = down * lift, up * lift, alpha / lift**2
        tensors[f"{name}.lora_down.weight"] = stored(down, dtype)
        tensors[f"{name}.lora_up.weight"] = stored(up, dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors, kohya_header(title, adapter, max(ranks.values()), tensors)


def balance_of(down: torch.Tensor, up: torch.Tensor) -> float:
    """The power of two that makes the largest numbers of down * balance and up / balance about equal."""
    largest_down = down.abs().max()
    largest_up = up.abs().max()
    if min(largest_down, largest_up) == 0:
        return 1.0
    return 2.0 ** round(0.5 * float((largest_up / largest_down).log2()))


def lift_of(down: torch.Tensor, up: torch.Tensor) -> float:
    """The power of two that brings the largest number of both to between 64 and 256; fp8 ends at 448."""
    largest = float(max(down.abs().max(), up.abs().max()))
    return 2.0 ** math.floor(math.log2(256 / largest)) if largest else 1.0


def as_pairs(adapter: Adapter, dtype: torch.dtype) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """(component, path, down, up) of every layer as a plain LoRA of its own rank, to be rounded to dtype.

    down [R, N], up [M, R], or [R, C, kh, kw] and [M, R, 1, 1] of a convolution.
    """
    for component, path, _ in adapter.items():
        pair = adapter.for_file(component, path, dtype)
        yield component, path, *with_kernels(*pair, adapter.kernel(component, path))


def file_sizes(layers: dict[str, AdaptedLayer]) -> tuple[int, int | None]:
    """Bytes in fp32 of the native file and of the exported LoRA, from shapes alone.

    layers: {component.path: layer}.
    The latter is None where an adapter has no low-rank form.
    """
    native = 0
    exported = 0
    for component in COMPONENTS:
        adapters = [layer.adapter for path, layer in layers.items() if path.startswith(f"{component}.")]
        native += sum(p.numel() for adapter in adapters for p in adapter.parameters())
        ranks = [adapter.pair_rank_of(dict(adapter.named_parameters())) for adapter in adapters]
        if None in ranks:
            return 4 * native, None
        sizes = [adapter.in_features + adapter.out_features for adapter in adapters]
        exported += sum(rank * size for rank, size in zip(ranks, sizes, strict=True))
    return 4 * native, 4 * exported
