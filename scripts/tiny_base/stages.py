"""The stages that train the parts of the embedded base: VAE, image-text encoder, UNet."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from composer import SIZE, Composer
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from models import BETAS, embed, make_encoders, make_unet, make_vae, token_ids
from torch import nn
from training_loop import fit, save

from gralora_diffusion.sdxl.base import Prompts, predict


def train_vae(folder: Path, composer: Composer, steps: int) -> AutoencoderKL:
    """On crops of 32 x 32 pixels for 72 % of the steps, then on whole images."""
    vae = make_vae()
    whole_from = int(steps * 0.72)

    def loss_of(step, rng):
        n = 20 if step < whole_from else 8
        images = composer.compose([composer.plan(rng) for _ in range(n)], rng)
        if step < whole_from:
            top, left = rng.integers(0, SIZE // 2 + 1, (2, n))
            crops = [x[:, y : y + 32, z : z + 32] for x, y, z in zip(images, top, left, strict=True)]
            images = torch.stack(crops)
        posterior = vae.encode(images).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape)).float()
        error = vae.decode(posterior.mean + posterior.std * noise).sample - images
        kl = posterior.kl().mean() / (images[0].numel() / 192)
        return error.abs().mean() + 2 * error.square().mean() + 2e-4 * kl

    fit("vae", folder, dict(vae=vae), loss_of, steps, 2e-3, ema=0.998)
    vae.register_to_config(scaling_factor=round(float(1 / latents_std(vae, composer)), 4))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def latents_std(vae: AutoencoderKL, composer: Composer) -> torch.Tensor:
    rng = np.random.default_rng(7)
    latents = []
    for _ in range(8):
        images = composer.compose([composer.plan(rng) for _ in range(64)], rng)
        latents.append(vae.encode(images).latent_dist.mean)
    return torch.cat(latents).std()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, composer: Composer, n: int = 128):
    """(mean PSNR in dB, images, the images after a round trip) of held-out pairs of object and background."""
    rng = np.random.default_rng(10**6)
    images = composer.compose([composer.plan(rng, held_out=True) for _ in range(n)], rng)
    decoded = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(16)]
    decoded = torch.cat(decoded).clamp(-1, 1)
    error = (images - decoded).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean()), images, decoded


def train_encoders(folder: Path, composer: Composer, tokenizers, steps: int) -> list[nn.Module]:
    """Both text encoders and the image encoder with CLIP's loss (arXiv 2103.00020)."""
    torch.manual_seed(1)
    one, two, vision = make_encoders(tokenizers[0])
    head = nn.Parameter(torch.randn(64, 128) / 8)  # projects the first text encoder, which has no projection
    extra = nn.ParameterDict(dict(head=head, scale=nn.Parameter(torch.tensor(2.6592))))

    def loss_of(step, rng):
        plans = [composer.plan(rng) for _ in range(96)]
        images = composer.compose(plans, rng)
        texts = [composer.describe(plan, rng) for plan in plans]
        if rng.random() < 0.3:  # blurred images too, since a small UNet's are
            images = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        image = F.normalize(vision(images).image_embeds, dim=-1)
        first = one(token_ids(tokenizers[0], texts, "longest")).pooler_output @ extra["head"]
        second = two(token_ids(tokenizers[1], texts, "longest")).text_embeds
        target = torch.arange(len(texts))
        scale = extra["scale"].exp().clamp(max=50)
        loss = 0.0
        for text in (first, second):
            logits = scale * image @ F.normalize(text, dim=-1).T
            loss = loss + (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 4
        return loss

    fit("clip", folder, dict(one=one, two=two, vision=vision, extra=extra), loss_of, steps, 1.5e-3)
    return [model.eval().requires_grad_(False) for model in (one, two, vision)]


def image_pool(folder: Path, composer: Composer, vae: AutoencoderKL, n: int = 25_000):
    """The images of this process, encoded once: (plans, scaled latents fp16 [n, 16, 8, 8])."""
    path = folder / f"latents{dist.get_rank()}.pt"
    rng = np.random.default_rng((99, dist.get_rank()))
    plans = [composer.plan(rng, objects=composer.unet_objects) for _ in range(n)]
    if not path.exists():
        latents = []
        with torch.no_grad():
            for i in range(0, n, 50):
                images = composer.compose(plans[i : i + 50], rng)
                latents.append(vae.encode(images).latent_dist.mean * vae.config.scaling_factor)
        save(torch.cat(latents).half(), path)
    dist.barrier()
    return plans, torch.load(path, weights_only=True)


def train_unet(
    folder: Path, composer: Composer, vae: AutoencoderKL, tokenizers, encoders, steps: int
) -> UNet2DConditionModel:
    """To predict noise; each step has new captions of its images."""
    torch.manual_seed(2)
    unet = make_unet()
    alphas_cumprod = DDPMScheduler(**BETAS).alphas_cumprod
    plans, latents = image_pool(folder, composer, vae)

    def loss_of(step, rng):
        n = 32
        rows = rng.integers(0, len(plans), n)
        with torch.no_grad():
            texts = [composer.describe(plans[i], rng) for i in rows]
            context, pooled = embed(texts, tokenizers, encoders)
        x = latents[rows].float()
        # one in ten has no caption: zeros, as SDXL's pipeline gives
        captioned = torch.from_numpy(rng.random(n) > 0.1).float()
        noise = torch.from_numpy(rng.standard_normal(x.shape)).float()
        t = torch.from_numpy((rng.permutation(n) + rng.random(n)) * (1000 / n)).long()  # stratified
        a = alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        prompts = Prompts(context * captioned.view(-1, 1, 1), pooled * captioned.view(-1, 1))
        out = predict(unet, noisy, t, prompts, random_sizes(n, rng))
        # All noise levels weigh about the same: a plain mean neglects high noise, which decides on shapes.
        weight = (1 / alphas_cumprod[t]).clamp(max=16)
        return (weight * (out - noise).square().mean((1, 2, 3))).mean() / 4

    fit("unet", folder, dict(unet=unet), loss_of, steps, 1e-3, flat=0.6, ema=0.999)
    return unet.eval()


def random_sizes(n: int, rng: np.random.Generator) -> torch.Tensor:
    """SDXL's time ids [n, 6]; 30 % have a random original size and crop, so that the UNet ignores them."""
    ids = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE]).float().repeat(n, 1)
    other = rng.random(n) < 0.3
    ids[other, :2] = torch.from_numpy(rng.integers(SIZE, 1025, (other.sum(), 2))).float()
    ids[other, 2:4] = torch.from_numpy(rng.integers(0, SIZE, (other.sum(), 2))).float()
    return ids
