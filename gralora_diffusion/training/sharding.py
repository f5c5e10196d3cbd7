"""accelerate's FSDP: each process keeps a part of the frozen UNet, and all of the small adapters."""

import os

from accelerate import Accelerator, DistributedType

from gralora_diffusion.adapters.registry import adapter_parameters, handles
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")


def check_sharding(config: TrainConfig, accelerator: Accelerator) -> None:
    """Raises ConfigError where accelerate's configuration, or an option with it, is not supported."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            problem = f"accelerate is configured for FSDP, but uses {kind.value} here"
            raise ConfigError(f"{problem}: FSDP needs GPUs; configure plain data parallelism")
        return
    if kind == DistributedType.DEEPSPEED or accelerator.state.fsdp_plugin.fsdp_version != 2:
        problem = f"accelerate is set to {kind.value}, but only FSDP 2 can shard a base"
        raise ConfigError(f"{problem}: choose that, or plain multi-GPU")
    needs = "accelerate is set to FSDP, which needs"
    if not config.skip_final_inference:
        why = "since each process generates its sample images alone"
        raise ConfigError(f"{needs} --skip_final_inference, {why}", option="skip_final_inference")
    if config.base_model_precision:
        raise ConfigError(f"{needs} a base that is not quantized", option="base_model_precision")
    if config.offload_unet:
        raise ConfigError(f"{needs} a UNet on the GPUs: drop --offload_unet", option="offload_unet")
    if config.compile:
        raise ConfigError(f"{needs} blocks that are not compiled: drop --compile", option="compile")
    if config.gora_init:
        option = "allocation" if config.allocation else "allocate"
        problem = f"{needs} an adapter without --allocate, --allocation and --adapter gora"
        raise ConfigError(problem, option=option)


def shard(unet, accelerator: Accelerator) -> None:
    """Shard the frozen weights over all processes, block by block; a block is whole while it computes."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    from torch.distributed.fsdp import fully_shard

    known = fingerprint(unet)
    for handle in handles(unet).values():
        handle.fingerprint = known
    plugin = accelerator.state.fsdp_plugin
    how = dict(
        reshard_after_forward=plugin.reshard_after_forward,
        offload_policy=plugin.cpu_offload,
        ignored_params=set(adapter_parameters(unet).values()),
    )
    for module in [m for m in unet.modules() if type(m).__name__ in BLOCKS]:
        fully_shard(module, **how)
    fully_shard(unet, **how)
