"""In place of operations whose libraries the stub cannot answer for: cuDNN, cuSOLVER, CUB and Thrust.

They allocate what the real ones do, check devices and dtypes as those would, and compute nothing.  Importing
this module installs them.
"""

import os

import counters
import numpy as np
import torch

READS = "NO_GPU_READS"  # the environment's value for set_reads()
LARGEST_IMAGE = 64  # side in pixels
LAST = torch.channels_last

reads = float(os.environ.get(READS, "0"))


def set_reads(value: float) -> None:
    """What .item() of a floating-point number on the device gives.

    0, what the memory holds, lets an optimizer that divides by a sum of gradients, such as Prodigy, leave its
    step early; 1 would tell fp16's gradient scaler that it overflowed.
    """
    global reads
    reads = value


def convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """aten::convolution: one product, and one kernel for the bias."""
    check_alike("convolution", x, weight, *([bias] if bias is not None else []))
    memory_format = format_of(x, weight)
    if memory_format == torch.contiguous_format:
        x, weight = x.contiguous(), weight.contiguous()  # as cuDNN's wrapper does
    counters.STUB.no_gpu_product(b"cudnn convolution")
    shape = convolution_shape(x, weight, stride, padding, dilation, transposed)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if bias is not None:
        y.add_(bias.view(1, -1, *[1] * (x.ndim - 2)))
    return y


def convolution_backward(
    gradient, x, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, wanted
):
    """aten::convolution_backward: a product for each gradient that is wanted."""
    check_alike("convolution_backward", gradient, x, weight)
    memory_format = format_of(x, weight)
    gradient = gradient.contiguous(memory_format=memory_format)
    for _ in filter(None, wanted[:2]):
        counters.STUB.no_gpu_product(b"cudnn convolution backward")
    of_x = torch.empty_like(x, memory_format=memory_format) if wanted[0] else None
    of_weight = torch.empty_like(weight) if wanted[1] else None
    of_bias = gradient.sum([0, *range(2, x.ndim)]) if wanted[2] else None
    return of_x, of_weight, of_bias


def check_alike(operation: str, *tensors: torch.Tensor) -> None:
    """Raises RuntimeError as cuDNN's wrapper does for tensors of two devices or dtypes."""
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        raise RuntimeError(f"{operation} of tensors of {kinds}")


def convolution_shape(x, weight, stride, padding, dilation, transposed) -> list[int]:
    shape = [x.shape[0], weight.shape[1] if transposed else weight.shape[0]]
    for axis in range(x.ndim - 2):
        step, pad, spread = (values[axis % len(values)] for values in (stride, padding, dilation))
        reach = spread * (weight.shape[2 + axis] - 1)
        side = x.shape[2 + axis]
        if transposed:
            shape.append((side - 1) * step - 2 * pad + reach + 1)
        else:
            shape.append((side + 2 * pad - reach - 1) // step + 1)
    return shape


def format_of(x, weight) -> torch.memory_format:
    """channels_last where the image or the weight is, as cuDNN's wrapper chooses it."""
    for tensor in (x, weight):
        if x.ndim == 4 and tensor.is_contiguous(memory_format=LAST) and not tensor.is_contiguous():
            return LAST
    return torch.contiguous_format


def on_cpu(name: str):
    """cuSOLVER's decompositions: the CPU's, of zeros."""
    operation = getattr(torch.ops.aten, name).default

    def decompose(*values, **options):
        moved = [value.cpu() if isinstance(value, torch.Tensor) else value for value in values]
        return tuple(part.cuda() for part in operation(*moved, **options))

    return decompose


def solve(A, B, *, left=True, check_errors=False):
    """aten::_linalg_solve_ex: result, LU, pivots and info, all of them zero."""
    pivots = torch.zeros(A.shape[:-1], dtype=torch.int32, device=A.device)
    info = torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)
    return column_major(B), column_major(A), pivots, info


def check_errors(info, name, *, is_matrix=False):
    """aten::_linalg_check_errors: there is none; a bool that is read back would say that there is."""
    info.cpu()


def column_major(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor).mT.contiguous().mT


def cumsum(x, dim, *, dtype=None):
    """CUB asks the device how much it needs, and gets no answer."""
    return torch.zeros_like(x, dtype=dtype)


def nonzero(x):
    """As if all were true: CUB counts on the device how many are, and the host waits for the number."""
    counters.STUB.no_gpu_product(b"cub count")
    torch.zeros((), dtype=torch.int32, device=x.device).cpu()
    return torch.zeros(x.numel(), x.ndim, dtype=torch.long, device=x.device)


def index_put(x, indices, values, accumulate=False, unsafe=False):
    return x


def embedding_backward(gradient, indices, rows, *options):
    return gradient.new_zeros(rows, gradient.shape[-1])


def item(tensor):
    """aten::_local_scalar_dense, with the copy and the synchronization that the real one makes."""
    number = tensor.cpu().item()
    return reads if tensor.is_floating_point() else number


def color_images() -> None:
    """Let decoded images be small ramps.

    The package refuses images of a single color, as after an overflow, and large files take long.
    """
    from diffusers.image_processor import VaeImageProcessor

    to_images = VaeImageProcessor.numpy_to_pil

    def ramps(images: np.ndarray) -> list:
        small = images[:, :LARGEST_IMAGE, :LARGEST_IMAGE]
        return to_images(small + np.linspace(-0.5, 0.5, small.shape[2])[:, None])

    VaeImageProcessor.numpy_to_pil = staticmethod(ramps)


def install() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution", convolution, "CUDA")
    library.impl("convolution_backward", convolution_backward, "CUDA")
    for name in ("_linalg_svd", "_linalg_eigh", "linalg_qr"):
        library.impl(name, on_cpu(name), "CUDA")
    library.impl("_linalg_solve_ex", solve, "CUDA")
    library.impl("_linalg_check_errors", check_errors, "CUDA")
    library.impl("cumsum", cumsum, "CUDA")
    library.impl("nonzero", nonzero, "CUDA")
    library.impl("_index_put_impl_", index_put, "CUDA")
    library.impl("embedding_dense_backward", embedding_backward, "CUDA")
    library.impl("_local_scalar_dense", item, "CUDA")
    return library


LIBRARY = install()  # the replacements last as long as this object
