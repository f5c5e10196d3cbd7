"""How large the files of Export will be, from shapes alone, and how much a smaller rank loses."""

import math
from pathlib import Path

from gralora_diffusion.formats.writers import DTYPES, WRITERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.adapter_files import base_of
from gralora_diffusion.ui.export import file_stem
from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import Workspace

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp8": 1}
SDXL_PARAMETERS = 3_468_841_927  # of SDXL 1.0: UNet, both text encoders and VAE
_errors: dict[tuple, float] = {}  # {(version of a file, rank): the error}
_shapes: dict[tuple, object] = {}  # {version of a file: its adapter on the meta device} of the last file
_sizes: dict[tuple, dict] = {}  # {(version of a file, rank, precision): predicted_sizes()}
assert BYTES.keys() == DTYPES.keys()


def sizes_of(workspace: Workspace, name: str, rank: int | None, dtype: str) -> dict[str, int | None]:
    """{format: bytes, about}; None where the format cannot hold the adapter, or there are no sample images.

    rank: of the nearest LoRA; None for the adapter itself.
    """
    found = dict.fromkeys(WRITERS) | files_of_adapter(workspace, name, rank, dtype)
    found["merged"] = None
    if rank is None or found["native"] is not None:
        found["merged"] = BYTES[dtype] * parameters_of(workspace, name)
    found["samples"] = sample_bytes(workspace, name)
    return found


def files_of_adapter(workspace: Workspace, name: str, rank: int | None, dtype: str) -> dict[str, int | None]:
    """sizes_of() of the formats that hold an adapter alone."""
    import torch

    from gralora_diffusion.formats.predicted_sizes import nearest_on_meta, predicted_sizes

    adapter = shapes(workspace.adapter(name))
    key = (*version_of(workspace.adapter(name)), rank, dtype)
    found = _sizes.get(key)
    if found is None:
        try:
            written = adapter if rank is None else nearest_on_meta(adapter, rank)
        except ConfigError:
            return {}
        title = file_stem(name, rank)
        found = _sizes[key] = predicted_sizes(written, getattr(torch, DTYPES[dtype]), title)
    return found


def is_smaller(workspace: Workspace, name: str, rank: int) -> bool:
    """Whether the nearest LoRA of this rank makes a smaller file for ComfyUI; True where it is not known."""
    exact = files_of_adapter(workspace, name, None, "fp16").get("comfyui")
    reduced = files_of_adapter(workspace, name, rank, "fp16").get("comfyui")
    return exact is None or reduced is None or reduced < 0.99 * exact  # headers differ by a few bytes


def version_of(path: Path) -> tuple:
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


def shapes(path: Path):
    """The Adapter of a file on the meta device."""
    from gralora_diffusion.formats.predicted_sizes import on_meta
    from gralora_diffusion.formats.read import read_adapter

    version = version_of(path)
    adapter = _shapes.get(version)
    if adapter is None:
        adapter = on_meta(read_adapter(path))
        _shapes.clear()
        _sizes.clear()
        _shapes[version] = adapter
    return adapter


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
