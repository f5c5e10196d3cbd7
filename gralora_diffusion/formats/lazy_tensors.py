"""Tensors that are read one by one, changed and written, so that a whole model is never in memory."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.formats.safetensors_files import all_finite, opened
from gralora_diffusion.options import ConfigError

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class LazyTensor:
    """A tensor that is not in memory."""

    shape: list[int]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def shaped(tensor: LazyTensor | None, shape: list[int], what: str) -> LazyTensor:
    """The tensor, if it is there and has this shape; a linear layer may be stored as a 1 x 1 convolution."""
    if tensor is None:
        raise ConfigError(f"{what} is missing: it is not a complete SDXL base")
    if tensor.shape == [*shape, 1, 1]:
        return reshaped(tensor, shape)
    if tensor.shape != shape:
        problem = f"has the shape {tensor.shape}, and SDXL with this config needs {shape}"
        raise ConfigError(f"{what} {problem}: it is another kind of base")
    return tensor


def reshaped(tensor: LazyTensor, shape: list[int]) -> LazyTensor:
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def transposed(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)


def row_block(tensor: LazyTensor, index: int, count: int) -> LazyTensor:
    """Block `index` of `count` blocks of rows."""
    rows = tensor.shape[0] // count
    first = index * rows
    return LazyTensor([rows, *tensor.shape[1:]], tensor.dtype, lambda: tensor.read()[first : first + rows])


def stacked(tensors: list[LazyTensor]) -> LazyTensor:
    """The rows of all of them."""
    shape = [sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:]]
    return LazyTensor(shape, tensors[0].dtype, lambda: torch.cat([tensor.read() for tensor in tensors]))


def plus_delta(tensor: LazyTensor, delta: Delta) -> LazyTensor:
    """weight + delta, in fp32, or in fp64 where the delta is."""

    def read() -> torch.Tensor:
        base = tensor.read()
        change = delta.applied(base)
        return base.to(change.dtype) + change

    return LazyTensor(tensor.shape, torch.float32, read)


def stored(path: Path) -> tuple[dict[str, str], dict[str, LazyTensor]]:
    """(metadata, {name: tensor}) of a .safetensors file.

    Raises ConfigError for a file whose header is not true.
    """
    with opened(path):  # checks all of the header
        pass
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    metadata = header.pop("__metadata__", {})
    found = {name: stored_tensor(path, start, name, entry) for name, entry in header.items()}
    return metadata, found


def stored_tensor(path: Path, start: int, name: str, entry: dict) -> LazyTensor:
    """The tensor of one entry of the header of a file whose data starts at byte `start`."""
    if entry["dtype"] not in DTYPES:
        problem = f"{name!r} is of type {entry['dtype']}, which cannot be merged into"
        raise ConfigError(f"{path}: {problem}; these can: {', '.join(DTYPES)}")
    shape = entry["shape"]
    dtype = DTYPES[entry["dtype"]]
    first, last = entry["data_offsets"]
    return LazyTensor(
        shape, dtype, lambda: read_bytes(path, start + first, last - first, dtype).reshape(shape)
    )


def read_bytes(path: Path, start: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """`size` bytes of a file, read and not mapped, so that they leave memory with the tensor."""
    data = bytearray(size)
    with open(path, "rb") as file:
        file.seek(start)
        file.readinto(data)
    return torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)


def write_streamed(
    path: Path, tensors: dict[str, LazyTensor], dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """A .safetensors file with all floating-point numbers in `dtype`; complete or absent.

    Raises ConfigError for a number that `dtype` cannot hold.
    """
    header = {"__metadata__": metadata}
    dtypes = {}
    offset = 0
    for name, tensor in tensors.items():
        dtypes[name] = dtype if tensor.dtype.is_floating_point else tensor.dtype
        end = offset + math.prod(tensor.shape) * dtypes[name].itemsize
        header[name] = dict(dtype=NAMES[dtypes[name]], shape=tensor.shape, data_offsets=[offset, end])
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with complete_or_absent(path) as part, open(part, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            values = tensor.read().to(dtypes[name]).contiguous()
            if not all_finite(values):
                limit = f"a number is too large for {str(dtype).removeprefix('torch.')}"
                raise ConfigError(f"{name}: {limit}; use --dtype bf16 or fp32")
            file.write(values.flatten().view(torch.uint8).numpy().data)
