"""Any adapter file or folder as one Adapter; its keys show whose it is: ours, PEFT's, kohya's, diffusers'."""

import math
from pathlib import Path

import torch

from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.check import check_factors, checked
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.formats.read_foreign import read_foreign
from gralora_diffusion.formats.read_peft import PEFT_CONFIG, PEFT_TENSORS, read_peft
from gralora_diffusion.formats.safetensors_files import parsed, read_safetensors
from gralora_diffusion.options import ConfigError, from_dict
from gralora_diffusion.sdxl.load import COMPONENTS

NATIVE = "adapter.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"
HEADER = "gralora_diffusion"


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a file, a folder with one, a run folder, or a PEFT folder (of one model, or of several).

    The scale of LoRA files, alpha/rank, is folded into lora_B.  Raises ConfigError unless every tensor is
    known and finite, every pair is whole, and the header agrees with the tensors.
    """
    path = Path(path)
    if path.is_dir():
        folders = peft_folders(path)
        if folders:
            return checked(read_peft(folders), path)
        path = file_in(path) or path / NATIVE
    if not path.is_file():
        raise missing(path)
    if path.name == PEFT_TENSORS and (path.parent / PEFT_CONFIG).is_file():
        return checked(read_peft([path.parent]), path)
    metadata, tensors = read_safetensors(path)
    read = read_native if HEADER in metadata else read_foreign
    return checked(read(path, metadata, tensors), path)


def file_in(folder: Path) -> Path | None:
    """The file of a folder that read_adapter() reads, None for PEFT's folders.

    A file of another name is read where it is the only one.  Raises ConfigError where there are several.
    """
    for name in (NATIVE, DIFFUSERS):
        if (folder / name).is_file():
            return folder / name
    if peft_folders(folder):
        return None
    visible = [file for file in folder.glob("*.safetensors") if not file.name.startswith(".")]
    others = sorted(file for file in visible if file.is_file())
    if len(others) > 1:
        some = ", ".join(file.name for file in others[:3])
        raise ConfigError(f"{folder} holds several .safetensors files ({some}): give one of them")
    return others[0] if others else None


def peft_folders(folder: Path) -> list[Path]:
    """PEFT's folders of the models: this one, or those in it, of which the components' come first."""
    inside = [folder, *(folder / component for component in COMPONENTS)]
    found = [part for part in inside if (part / PEFT_CONFIG).is_file()]
    return found or sorted(file.parent for file in folder.glob(f"*/{PEFT_CONFIG}"))


def missing(path: Path) -> ConfigError:
    """What to do about an adapter file that is not there."""
    stopped = sorted(path.parent.glob(f"checkpoint-*/{NATIVE}"), key=lambda p: p.stat().st_mtime)
    if stopped:
        way = f"give its checkpoint, {stopped[-1].parent}, or run its command again"
        return ConfigError(f"{path.parent} was stopped before it finished: {way}")
    kinds = f"an adapter file, a run folder with {NATIVE}, or a PEFT folder with {PEFT_CONFIG}"
    return ConfigError(f"{path} does not exist: give {kinds}")


def read_native(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Adapter:
    """Our own file, see write_native(); not checked but for its header and its alphas."""
    facts = parsed(metadata[HEADER], f"{path}: its header {HEADER!r}")
    if not isinstance(facts.get("config"), dict):
        raise ConfigError(f"{path}: its header {HEADER!r} cannot be read; the file is damaged")
    try:
        adapter = Adapter(from_dict(AdapterConfig, facts["config"]), {}, facts)
    except ConfigError as error:
        raise ConfigError(f"{path}: the config in its header is invalid: {error}") from None
    for key, tensor in tensors.items():
        component, _, rest = key.partition(".")
        module_path, _, leaf = rest.rpartition(".")
        if component not in COMPONENTS or not module_path:
            raise ConfigError(f"{path}: unknown tensor {key!r}")
        layers = adapter.layers.setdefault(component, {})
        layers.setdefault(canonical(component, module_path), {})[leaf] = tensor
    for component, module_path, factors in adapter.items():
        if "alpha" in factors:  # a copy of the header's, for loaders that do not read headers
            where = f"{path}: {component}.{module_path}"
            alpha = factors.pop("alpha")
            check_factors(factors, adapter.config.method, where)
            wanted = adapter.scale(module_path, factors) * adapter.rank(module_path, factors)
            if alpha.numel() != 1 or not math.isclose(alpha.item(), wanted, rel_tol=1e-3):
                problem = "its alpha is not the one of the header; one of the two was changed"
                raise ConfigError(f"{where}: {problem}")
    return adapter
