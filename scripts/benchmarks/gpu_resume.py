"""gpu.sh's section of resuming: a run of N steps beside one that is stopped after N/2 and resumed.

With --deterministic first: cuBLAS reads the setting for it when it starts.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_base import Sizes, forget_accelerator, half_precision, random_base
from gpu_contestants import config_of
from gpu_sections import Clock, attempt
from safetensors.torch import load_file

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.formats.read import NATIVE
from gralora_diffusion.training.train import train

RANK, K = 16, 2  # files of a larger rank take long to write


def run(sizes: Sizes, clock: Clock, add: Callable) -> str:
    with (
        tempfile.TemporaryDirectory(prefix="gralora-gpu-") as folder,
        random_base(sizes.small, Path(folder)) as base,
    ):
        for deterministic in (True, False):
            if clock.left() <= 0:
                add(deterministic=deterministic, problem="skipped: no time was left")
                continue
            options = dict(pretrained_model_name_or_path=base, deterministic=deterministic)
            options |= dict(latent_cache_dir=str(Path(folder, "cache")), learning_rate=1e-3)
            options |= dict(method="gralora", rank=RANK, k=K, skip_final_inference=True)
            config = config_of(sizes, half_precision(), **options)
            place = Path(folder, f"deterministic-{deterministic}")
            steps = sizes.run_steps
            add(**attempt(dict(deterministic=deterministic), compared, config, steps, place))
    torch.use_deterministic_algorithms(False)
    about = f"{sizes.resolution} px, rank {RANK}, k {K}, {half_precision()}"
    return f"{about}; differences are of the adapters' numbers"


def compared(config: TrainConfig, steps: int, folder: Path) -> dict:
    """A row of the table: the adapters of both runs."""
    whole = adapter_after(config, folder / "whole", steps)
    adapter_after(config, folder / "parts", steps // 2)
    parts = adapter_after(config, folder / "parts", steps)
    different, largest, numbers = 0, 0.0, 0.0
    for name, tensor in whole.items():
        different += not torch.equal(tensor, parts[name])
        largest = max(largest, (tensor - parts[name]).abs().max().item())
        numbers = max(numbers, tensor.abs().max().item())
    return {
        "steps": f"{steps}, and {steps // 2} + {steps - steps // 2}",
        "equal bits": different == 0,
        "tensors that differ": f"{different} of {len(whole)}",
        "largest difference": largest,
        "largest number": numbers,
    }


def adapter_after(config: TrainConfig, run: Path, steps: int) -> dict[str, torch.Tensor]:
    """Train, or resume, until so many steps are done, and read the adapter."""
    forget_accelerator()
    train(dataclasses.replace(config, output_dir=str(run), max_train_steps=steps))
    return load_file(run / NATIVE)
