"""What a step takes from the host: made ahead of time in a thread, and moved to the device in one copy."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

ALIGNED = 16  # bytes: where each tensor begins in a packed one
PINNED = ("cuda", "xpu")  # devices that copy from pinned memory while the host goes on


class Prefetcher:
    """get(index) is make(index), which a thread has begun when the index follows the last one by `stride`."""

    def __init__(self, make: Callable[[int], object], stride: int = 1):
        self.make, self.stride = make, stride
        self.thread = ThreadPoolExecutor(1, "prefetch")
        self.next: tuple[int, Future] | None = None

    def get(self, index: int):
        ready, self.next = self.next, None
        found = ready[1].result() if ready and ready[0] == index else self.make(index)
        following = index + self.stride
        self.next = following, self.thread.submit(self.make, following)
        return found


class Packed:
    """Tensors of any dtypes in one piece of pinned memory."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.places, end = [], 0
        for tensor in tensors:
            self.places.append((end, tensor.nbytes, tensor.dtype, tensor.shape))
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        self.buffer = torch.empty(end, dtype=torch.uint8, pin_memory=True)
        for tensor, part in zip(tensors, self.views(self.buffer), strict=True):
            part.copy_(tensor)

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for start, size, dtype, shape in self.places:
            found.append(buffer[start : start + size].view(dtype).view(shape))
        return found

    def to(self, device: torch.device) -> list[torch.Tensor]:
        """The tensors on the device, in one copy that the host does not wait for."""
        return self.views(self.buffer.to(device, non_blocking=True))
