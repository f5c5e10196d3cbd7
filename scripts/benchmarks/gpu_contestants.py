"""The training steps that gpu.sh compares, each with a UNet of its own that shares the frozen weights."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_base import CUDA, Sizes, dtype_of, forget_accelerator, random_pipeline, sharing

from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import BatchPlan, examples_at, plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.dataset import instance_images
from gralora_diffusion.data.encode import encode_captions
from gralora_diffusion.options import from_flat
from gralora_diffusion.sdxl.base import Prompts, predict
from gralora_diffusion.training.accelerator import make_accelerator
from gralora_diffusion.training.compiled import compile_blocks
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.objective import objective
from gralora_diffusion.training.optim import parameter_groups
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.setup import make_trainable
from gralora_diffusion.training.signals import Interrupts
from gralora_diffusion.training.steps import run_steps

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
ENDLESS = 10**9  # steps
RATE = 1e-4


@dataclass
class Parts:
    """What all steps share: frozen models, a batch plan of the bundled images, and their captions."""

    sizes: Sizes
    precision: str
    pipeline: object  # the UNet where its user puts it, the VAE on the CPU, no text encoders
    batch_plan: BatchPlan
    encode: Callable  # captions -> their Prompts
    accelerator: object
    folder: tempfile.TemporaryDirectory  # of the cache, as long as this object lasts

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.precision)

    def unet(self):
        """A frozen UNet in training mode."""
        return sharing(self.pipeline.unet).train()

    def config(self, **options) -> TrainConfig:
        return config_of(self.sizes, self.precision, **options)


def config_of(sizes: Sizes, precision: str, **options) -> TrainConfig:
    """The config of a run of one image in a batch, on the bundled images."""
    common = dict(mixed_precision=precision, resolution=sizes.resolution, train_batch_size=1, seed=0)
    common |= dict(learning_rate=RATE, instance_prompt="a photo of sks robot")
    return from_flat(TrainConfig, common | options).resolved()


def prepare(sizes: Sizes, precision: str) -> Parts:
    """Make a base on the GPU, and encode the bundled images and their caption with it."""
    forget_accelerator()
    folder = tempfile.TemporaryDirectory(prefix="gralora-gpu-")
    cache = Cache(Path(folder.name, "cache"))
    config = config_of(sizes, precision)
    accelerator = make_accelerator(config, Path(folder.name, "run"))
    pipeline = random_pipeline(sizes.small, dtype_of(precision))
    batch_plan = plan_batches(instance_images(config), [], pipeline.vae, config, cache, accelerator)
    encode = encode_captions(batch_plan.captions(), pipeline, cache, accelerator)
    pipeline.text_encoder = None
    pipeline.text_encoder_2 = None
    pipeline.vae.to("cpu")
    return Parts(sizes, precision, pipeline, batch_plan, encode, accelerator, folder)


class OurSteps:
    """The steps of `gralora train`: step() runs the next one of its loop."""

    def __init__(self, parts: Parts, method: str, checkpointing: bool = False, compiled: bool = False):
        adapter = dict(method=method, rank=parts.sizes.rank)
        adapter |= dict(k=parts.sizes.k) if method == "gralora" else {}
        config = parts.config(**adapter, gradient_checkpointing=checkpointing)
        unet = parts.unet()
        torch.manual_seed(0)
        inject(unet, config.adapter)
        if compiled:
            compile_blocks(unet, shapes=1)
        self.steps = trainer_steps(parts, unet, config, parts.accelerator)

    def step(self) -> None:
        next(self.steps)


def trainer_steps(parts: Parts, unet, config: TrainConfig, accelerator, one_batch: bool = False):
    """The trainer's own loop over an adapted UNet: an endless generator of (line of metrics, stopping).

    one_batch: the first batch, with its noise and timestep, in every step.
    """
    models = {"unet": unet}
    make_trainable(models, config)
    groups = parameter_groups(models, config)
    factors = FlatFactors.of_models(groups, models.values(), dtype_of(config.mixed_precision))
    optimization = Optimization.over(factors, config, ENDLESS, accelerator)
    scheduler, dtype = parts.pipeline.scheduler, dtype_of(config.mixed_precision)
    loss_of = objective(unet, scheduler, parts.batch_plan, parts.encode, config, accelerator, dtype)
    chosen = (lambda index: loss_of(0)) if one_batch else loss_of
    return run_steps(optimization, chosen, config, accelerator, Interrupts(lambda: None), ENDLESS)


class FrozenSteps:
    """Forward and backward of the frozen UNet with respect to its input: no step can take less."""

    def __init__(self, parts: Parts, checkpointing: bool = False):
        self.unet = parts.unet()
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.batch = batch_of(parts)
        self.dtype = parts.dtype

    def step(self) -> None:
        latents, prompts, sizes = self.batch
        noisy = torch.randn_like(latents).to(self.dtype).requires_grad_()
        timesteps = torch.full((len(latents),), 500, device=CUDA)
        predicted = predict(self.unet, noisy, timesteps, prompts, sizes)
        loss = F.mse_loss(predicted.float(), latents)
        loss.backward()
        loss.item()


class PeftSteps:
    """A step as in diffusers' train_dreambooth_lora_sdxl.py, whose layers are PEFT's.

    Autocast, noise drawn on the GPU, AdamW as torch makes it, and the loss read back.
    as_the_script: encode the image in each step with the VAE in fp32, as that script does, and leave the
    factors in the dtype that PEFT gives them.  Otherwise latents are ready and the factors fp32.
    """

    def __init__(self, parts: Parts, method: str, checkpointing: bool = False, as_the_script: bool = False):
        from diffusers import DDPMScheduler

        self.unet = parts.unet()
        self.accelerator = parts.accelerator
        self.batch = batch_of(parts)
        self.dtype = parts.dtype
        self.vae = sharing(parts.pipeline.vae).to(CUDA) if as_the_script else None
        self.pixels = torch.rand(1, 3, parts.sizes.resolution, parts.sizes.resolution).mul(2).sub(1)
        self.scheduler = DDPMScheduler.from_config(parts.pipeline.scheduler.config)
        put_peft_layers(self.unet, method, parts.sizes)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        if not as_the_script or parts.precision == "fp16":  # whose scaler needs fp32
            for parameter in self.parameters:
                parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=1e-4)
        self.optimizer = parts.accelerator.prepare_optimizer(optimizer)

    def step(self) -> None:
        latents, prompts, sizes = self.batch
        if self.vae:
            with torch.no_grad():
                encoded = self.vae.encode(self.pixels.to(CUDA)).latent_dist.sample()
            latents = (encoded * self.vae.config.scaling_factor).to(self.dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), device=CUDA)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.dtype)
        with torch.autocast("cuda", self.dtype):
            predicted = predict(self.unet, noisy, timesteps, prompts, sizes)
        loss = F.mse_loss(predicted.float(), noise.float())
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


def put_peft_layers(unet, method: str, sizes: Sizes) -> None:
    import peft

    rank = sizes.rank
    if method == "lora":
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS
        )
    else:
        config = peft.GraloraConfig(r=rank, alpha=rank, gralora_k=sizes.k, hybrid_r=0, target_modules=TARGETS)
    peft.inject_adapter_in_model(config, unet)


def batch_of(parts: Parts) -> tuple[torch.Tensor, Prompts, torch.Tensor]:
    """(latents in fp32, prompts, sizes) of the first batch, on the GPU."""
    (example,) = examples_at(parts.batch_plan, [0])
    embeds, pooled = parts.encode([example.caption])
    prompts = Prompts(embeds.to(CUDA, parts.dtype), pooled.to(CUDA, parts.dtype))
    return example.moments[None, 0].to(CUDA), prompts, example.time_ids[None].to(CUDA)


CONTESTANTS = {  # {name: make(parts, checkpointing)}
    "frozen UNet, gradient of its input": lambda parts, saving: FrozenSteps(parts, saving),
    "LoRA": lambda parts, saving: OurSteps(parts, "lora", saving),
    "GraLoRA": lambda parts, saving: OurSteps(parts, "gralora", saving),
    "PEFT LoRA": lambda parts, saving: PeftSteps(parts, "lora", saving),
    "PEFT GraLoRA": lambda parts, saving: PeftSteps(parts, "gralora", saving),
    "diffusers' script": lambda parts, saving: PeftSteps(parts, "lora", saving, as_the_script=True),
}
