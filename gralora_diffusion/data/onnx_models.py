"""Models in ONNX files, run by onnxruntime on the CPU."""

from pathlib import Path

from gralora_diffusion.console import no_telemetry
from gralora_diffusion.data.listing import printable, reason_of
from gralora_diffusion.options import ConfigError


def onnx_session(path: Path, extra: str):
    """An onnxruntime.InferenceSession. extra: the package's extra that has onnxruntime.

    Raises ConfigError where onnxruntime is missing or the file is no model.
    """
    no_telemetry()
    try:
        import onnxruntime
    except ImportError:
        problem = "the package onnxruntime is missing"
        raise ConfigError(f"{problem}: pip install 'gralora-diffusion[{extra}]'", option="model") from None
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        problem = f"{printable(path)} cannot be used as an ONNX model: {reason_of(error)}"
        raise ConfigError(problem, option="model") from None
