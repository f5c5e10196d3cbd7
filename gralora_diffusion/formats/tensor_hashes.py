"""The hashes of a file's tensors that web UIs look for in its header, computed before it is written."""

import hashlib
import json
from typing import NamedTuple

import torch

LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000  # of a file, which the legacy hash reads


class Hashes(NamedTuple):
    """sha256: of all bytes after the header, in hex; legacy: 8 digits of that of a window of 64 KiB."""

    sha256: str
    legacy: str


def hashes_of(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Hashes:
    """The hashes of the file that safetensors writes of these tensors and the ss_* part of this header.

    Only those lines count, as in sd-scripts, since they do not change later. No copy of the tensors is made.
    """
    if any(tensor.is_meta for tensor in tensors.values()):  # shapes alone: as long as the real ones
        return Hashes("0" * 64, "0" * 8)
    kept = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    order = order_of(tensors)
    head = header_bytes(tensors, order, kept)
    whole = hashlib.sha256()
    window = hashlib.sha256(head[LEGACY_START : LEGACY_START + LEGACY_BYTES])
    position = len(head)
    for part in (bytes_of(tensors[name]) for name in order):
        whole.update(part)
        start = max(LEGACY_START - position, 0)
        end = max(LEGACY_START + LEGACY_BYTES - position, 0)
        window.update(part[start:end])
        position += len(part)
    return Hashes(whole.hexdigest(), window.hexdigest()[:8])


def order_of(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """{name: dtype as safetensors calls it} in the order of the file, which safetensors itself decides."""
    from safetensors.torch import save

    stand_ins = {name: torch.zeros(1, dtype=tensor.dtype) for name, tensor in tensors.items()}
    content = save(stand_ins)
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    return {name: entries[name]["dtype"] for name in order}


def file_size(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> int:
    """Bytes of the file that safetensors writes, from shapes alone."""
    data = sum(tensor.nbytes for tensor in tensors.values())
    return len(header_bytes(tensors, order_of(tensors), metadata)) + data


def header_bytes(tensors: dict[str, torch.Tensor], order: dict[str, str], metadata: dict[str, str]) -> bytes:
    """A file's bytes before its tensors: the length, then JSON padded to a multiple of 8 bytes."""
    header: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype in order.items():
        end = position + tensors[name].nbytes
        header[name] = dict(dtype=dtype, shape=list(tensors[name].shape), data_offsets=[position, end])
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, without a copy where it is contiguous."""
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
