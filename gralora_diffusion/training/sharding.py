"""accelerate's FSDP: each process keeps a part of the frozen UNet, and the adapters, which are small, are whole in all of them."""

import os

from accelerate import Accelerator, DistributedType

from gralora_diffusion.adapters.registry import adapter_parameters, handles
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")


def check_sharding(config: TrainConfig, accelerator: Accelerator) -> None:
    """Raises ConfigError where accelerate is set up for what cannot be done, or does not go with an option."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise ConfigError(
                f"accelerate is set up for FSDP, and makes {kind.value} of it here: it needs GPUs; choose plain data parallelism"
            )
        return
    if kind == DistributedType.DEEPSPEED or accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError(
            f"accelerate is set to {kind.value}; here a base is sharded by FSDP of version 2 alone: choose it, or plain multi-GPU"
        )
    needs = {
        "--skip_final_inference, since sample images are drawn by each process for itself": not config.skip_final_inference,
        "a base that is not quantised": config.base_model_precision,
        "an adapter without --allocate, --allocation and --adapter gora": config.gora_init,
    }
    if wrong := [words for words, missing in needs.items() if missing]:
        raise ConfigError(f"accelerate is set to FSDP, which needs {wrong[0]}")


def shard(unet, accelerator: Accelerator) -> None:
    """Shard the frozen weights over all processes, block by block; a block is whole while it computes."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    from torch.distributed.fsdp import fully_shard

    known = fingerprint(unet)
    for handle in handles(unet).values():
        handle.fingerprint = known
    plugin = accelerator.state.fsdp_plugin
    how = dict(reshard_after_forward=plugin.reshard_after_forward, offload_policy=plugin.cpu_offload)
    own = set(adapter_parameters(unet).values())
    for module in [m for m in unet.modules() if type(m).__name__ in BLOCKS]:
        fully_shard(module, **how, ignored_params=own)
    fully_shard(unet, **how, ignored_params=own)
