"""How large the files of Export will be, from shapes alone, and how much a smaller rank loses."""

import math
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion.formats.writers import DTYPES, WRITERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.adapter_files import base_of
from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import Workspace

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp8": 1}
ENTRY = 150  # bytes of a tensor's entry in a file's header, about
ENTRIES = {"comfyui": 3, "diffusers": 2, "peft": 2}  # tensors of a layer as a plain LoRA
SDXL_PARAMETERS = 3_468_841_927  # of SDXL 1.0: UNet, both text encoders and VAE
_errors: dict[tuple, float] = {}  # {(version of a file, rank): the error}
assert BYTES.keys() == DTYPES.keys()


class Shapes(NamedTuple):
    """Of an adapter's file.

    own: numbers of each tensor; None where the native format cannot hold it. pairs: (M, N, rank) of each
    layer as a LoRA; None where one has no low-rank form. has_blocks: whether it is a GraLoRA.
    """

    own: list[int] | None
    pairs: list[tuple[int, int, int]] | None
    has_blocks: bool


_shapes: dict[tuple, Shapes] = {}  # {version of a file: shapes_of() it} of the last file


def sizes_of(workspace: Workspace, name: str, rank: int | None, dtype: str) -> dict[str, int | None]:
    """{format: bytes, about}; None where it is not known, or where the format cannot hold the adapter.

    rank: of the nearest LoRA; None for the adapter itself.
    """
    source = workspace.adapter(name)
    own, pairs, has_blocks = shapes(source)
    found: dict[str, int | None] = dict.fromkeys(WRITERS)
    if pairs is not None:
        numbers = 0
        for out_size, in_size, own_rank in pairs:
            numbers += min(own_rank, rank or own_rank, out_size, in_size) * (out_size + in_size)
        for kind, entries in ENTRIES.items():
            found[kind] = BYTES[dtype] * numbers + ENTRY * entries * len(pairs)
        if rank is not None:
            found["native"] = found["diffusers"]
    if rank is None and own is not None:
        found["native"] = BYTES[dtype] * sum(own) + ENTRY * len(own)
        if has_blocks:
            found["peft"] = found["native"]  # PEFT has GraLoRA too
    found["merged"] = BYTES[dtype] * parameters_of(workspace, name)
    found["samples"] = sample_bytes(workspace, name)
    return found


def version_of(path: Path) -> tuple:
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


def shapes(path: Path) -> Shapes:
    from gralora_diffusion.formats.read import read_adapter

    version = version_of(path)
    if version not in _shapes:
        adapter = read_adapter(path)
        own = None
        if not adapter.deltas:
            own = [tensor.numel() for *_, factors in adapter.items() for tensor in factors.values()]
        pairs = []
        for _, _, delta in adapter.changes():
            pair = delta.to("meta").pair()
            if pair is None:
                pairs = None
                break
            down, up = pair
            pairs.append((up.shape[0], math.prod(down.shape[1:]), down.shape[0]))
        _shapes.clear()
        has_blocks = any("gralora_A" in factors for *_, factors in adapter.items())
        _shapes[version] = Shapes(own, pairs, has_blocks)
    return _shapes[version]


def parameters_of(workspace: Workspace, name: str) -> int:
    """The numbers of the base that an adapter was trained on; of a hub's those of SDXL 1.0."""
    from gralora_diffusion.formats.safetensors_files import opened
    from gralora_diffusion.sdxl.load import COMPONENTS, EMBEDDED

    base = workspace.base_path(base_of(workspace, name))
    path = Path(base or EMBEDDED)
    files = [path] if path.is_file() else []
    for part in (*COMPONENTS, "vae"):
        files += sorted((path / part).glob("*.safetensors"))
    count = 0
    for file in files:
        with opened(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                count += math.prod(tensors.get_slice(key).get_shape())
    return count or SDXL_PARAMETERS


def sample_bytes(workspace: Workspace, name: str) -> int | None:
    """Bytes of a run's sample images; None where it has none."""
    run = name.partition("/")[0]
    if run not in workspace.run_names():
        return None
    found = [file.stat().st_size for _, files in sample_files(workspace.runs / run) for file in files]
    return sum(found) or None


def error_of(workspace: Workspace, name: str, rank: int) -> float:
    """The relative error, in the Frobenius norm, of the nearest LoRA of this rank: 0 is exact, 1 is nothing.

    It takes seconds for an adapter of SDXL.  Raises ConfigError where there is no such LoRA.
    """
    from gralora_diffusion.formats.nearest import nearest
    from gralora_diffusion.formats.read import read_adapter

    path = workspace.adapter(name)
    key = (*version_of(path), rank)
    if key not in _errors:
        try:
            _errors[key] = nearest(read_adapter(path), rank).error
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return _errors[key]


def size_text(size: int | None) -> str:
    """A size in the unit that suits it; "" where it is not known."""
    if size is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
