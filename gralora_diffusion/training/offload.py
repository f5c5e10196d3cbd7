"""A frozen UNet that stays in RAM: the device holds the block in use, and the next while it is copied.

For cards that do not hold the UNet. A block's weights are one copy from pinned memory, made on a stream of
its own while the block before computes. Results are bit-equal to those of a UNet on the device.
"""

import torch
from torch import nn

from gralora_diffusion.training.prefetch import PINNED

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # gradient checkpointing recomputes each alone ...
KEPT = ("mid_block.resnets.0",)  # ... but for this one, which diffusers keeps


def offloaded_blocks(unet: nn.Module) -> list[nn.Module]:
    found = []
    for name, module in unet.named_modules():
        if type(module).__name__ in BLOCKS and name not in KEPT:
            found.append(module)
    return found


def frozen_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [p for p in (*module.parameters(), *module.buffers()) if not p.requires_grad]


def offloaded_bytes(block: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in frozen_tensors(block))


class OffloadedBlock:
    """The frozen tensors of one block: in one host buffer always, on the device while they are needed."""

    def __init__(self, module: nn.Module, device: torch.device):
        self.module, self.device = module, device
        self.tensors = frozen_tensors(module)
        self.places, end = [], 0
        for tensor in self.tensors:
            self.places.append((end, tensor.nbytes, tensor.dtype, tensor.shape))
            end += -(-tensor.nbytes // 256) * 256
        self.host = torch.empty(end, dtype=torch.uint8, pin_memory=device.type in PINNED)
        for tensor, part in zip(self.tensors, self.views(self.host), strict=True):
            part.copy_(tensor)
            tensor.data = part
        self.resident: torch.Tensor | None = None
        self.ready = None  # the event after which the copy can be used

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for start, size, dtype, shape in self.places:
            found.append(buffer[start : start + size].view(dtype).view(shape))
        return found

    def fetch(self, stream) -> None:
        """Start the copy to the device."""
        if self.resident is not None:
            return
        if stream is None:
            self.resident = self.host.to(self.device, copy=True)
            return
        with torch.get_device_module(self.device).stream(stream):
            self.resident = self.host.to(self.device, non_blocking=True)
            self.ready = stream.record_event()

    def use(self) -> None:
        """Compute with the copy, once it is there."""
        if self.ready is not None:
            current = torch.accelerator.current_stream(self.device)
            current.wait_event(self.ready)
            self.resident.record_stream(current)
            self.ready = None
        for tensor, part in zip(self.tensors, self.views(self.resident), strict=True):
            tensor.data = part

    def release(self) -> None:
        """Free the copy."""
        if self.resident is None:
            return
        for tensor, part in zip(self.tensors, self.views(self.host), strict=True):
            tensor.data = part
        self.resident = None
        self.ready = None


class Offload:
    """Keeps the blocks of a UNet in the RAM; all else of it stays on the device.

    The UNet must be in CPU memory, and train with gradient checkpointing: a block is used in the forward
    pass, and again from its recomputation to the end of its backward pass. A block that starts ends the one
    before, in either direction.
    """

    def __init__(self, unet: nn.Module, device: torch.device):
        modules = offloaded_blocks(unet)
        self.blocks = [OffloadedBlock(module, device) for module in modules]
        self.order: list[int] = []  # in which this forward pass used the blocks so far
        self.earlier: list[int] = []  # the order of the pass before
        self.stream = torch.get_device_module(device).Stream(device) if device.type in PINNED else None
        for number, module in enumerate(modules):
            module.register_forward_pre_hook(self.starter(number))
        unet.register_forward_pre_hook(lambda *_: self.begin())
        offloaded = {id(tensor) for block in self.blocks for tensor in block.tensors}
        for tensor in (*unet.parameters(), *unet.buffers()):
            if id(tensor) not in offloaded:
                tensor.data = tensor.data.to(device)

    def begin(self) -> None:
        self.earlier = self.order
        self.order = []

    def starter(self, number: int):
        def start(*_) -> None:
            following = self.before(number) if in_backward() else self.after(number)
            for other, block in enumerate(self.blocks):
                if other not in (number, following):
                    block.release()
            self.blocks[number].fetch(self.stream)
            self.blocks[number].use()
            if following is not None:
                self.blocks[following].fetch(self.stream)

        return start

    def after(self, number: int) -> int | None:
        """The block that follows in a forward pass, as in the pass before."""
        self.order.append(number)
        place = len(self.order)
        follows = self.order == self.earlier[:place] and place < len(self.earlier)
        return self.earlier[place] if follows else None

    def before(self, number: int) -> int | None:
        """The block that follows in a backward pass."""
        place = self.order.index(number)
        return self.order[place - 1] if place else None


def in_backward() -> bool:
    """Whether autograd runs a backward pass, in which a block is recomputed."""
    return torch._C._current_graph_task_id() != -1
