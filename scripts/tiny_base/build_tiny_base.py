"""Train the embedded tiny SDXL base from scratch and write it in diffusers layout.

    python scripts/build_tiny_base.py --state build/tiny_base --output gralora_diffusion/tiny

Stages, each of which resumes from --state when it is stopped: pictures (npm) -> vae -> clip -> unet -> export.  Two
processes of one thread each, gradients averaged: on two cores that wastes less than two threads in one process.
Needs the extra `build` and npm.  About 25 + 12 + 150 minutes on two free cores.
"""

import argparse
import copy
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_base_data import COLOURS, HELD_OUT, PLAIN, RARE, SCENES, SIZE, TINTS, Composer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

POSITIONS = 32
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def make_vae():
    levels = 4
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=(16, 32, 48, 64),
        layers_per_block=1, latent_channels=16, norm_num_groups=8, sample_size=SIZE, force_upcast=False,
    )  # fmt: skip


def make_unet():
    return UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=16, out_channels=16, layers_per_block=1, block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 4, 5), cross_attention_dim=192, use_linear_projection=True, norm_num_groups=16,
        addition_embed_type="text_time", addition_time_embed_dim=32, projection_class_embeddings_input_dim=128 + 6 * 32,
    )  # fmt: skip


def make_text_encoders(tokenizer):
    common = dict(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    one = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, **common
    )
    two = CLIPTextConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=128,
        hidden_act="gelu",
        **common,
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=128,
    )
    return CLIPTextModel(one), CLIPTextModelWithProjection(two), CLIPVisionModelWithProjection(vision)


def make_tokenizers(folder: Path, composer: Composer):
    """CLIP's byte-level BPE, learnt on the captions; the second pads with "!" as SDXL's does."""
    if not (folder / "vocab.json").exists():
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        split = pre_tokenizers.Split(
            __import__("tokenizers").Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True
        )
        bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        bpe.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        rng = np.random.default_rng(0)
        words = [composer.describe(composer.plan(rng), rng) for _ in range(20000)]
        words += [
            " ".join(
                [
                    RARE,
                    *HELD_OUT,
                    *COLOURS,
                    *SCENES,
                    *PLAIN,
                    *TINTS,
                    "sticker toy wearing with of in the style",
                ]
            )
        ] * 50
        special = ["<|startoftext|>", "<|endoftext|>"]
        bpe.train_from_iterator(
            words,
            trainers.BpeTrainer(
                vocab_size=2048, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
            ),
        )
        folder.mkdir(parents=True, exist_ok=True)
        learnt = json.loads(bpe.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in learnt["merges"]]
        alphabet = sorted(letters)
        order = [
            "!",
            *[c for c in alphabet if c != "!"],
            *[c + "</w>" for c in alphabet],
            *[m.replace(" ", "") for m in merges],
            *special,
        ]
        vocab = {token: i for i, token in enumerate(dict.fromkeys(order))}
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    names = dict(
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=POSITIONS,
    )

    def load(pad: str):
        return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, **names)

    return load("<|endoftext|>"), load("!")


def token_ids(tokenizer, texts, padding="max_length"):
    return tokenizer(
        texts, padding=padding, truncation=True, max_length=POSITIONS, return_tensors="pt"
    ).input_ids


def embed(texts, tokenizers, encoders):
    """SDXL's conditioning: penultimate hidden states side by side [n, POSITIONS, 192], pooled projection [n, 128]."""
    one = encoders[0](token_ids(tokenizers[0], texts), output_hidden_states=True)
    two = encoders[1](token_ids(tokenizers[1], texts), output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds


def fit(stage, args, modules: dict, loss_of, steps, lr, warmup=100, flat=0.0, ema=0.0, average=True):
    """Train `modules` with AdamW; loss_of(step, rng) -> scalar.  Flat learning rate for `flat` of the way, then a cosine
    to zero.  Every state (weights, moments, average, step) goes to --state, and a stopped stage goes on from there."""
    rank, world = dist.get_rank(), dist.get_world_size()
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2, betas=(0.9, 0.99))
    mean = [p.detach().clone() for p in parameters] if ema else None
    path, start, began = args.state / f"{stage}.pt", 0, time.time()
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        optimizer.load_state_dict(state["optimizer"])
        mean, start = state["mean"], state["step"]
    for step in range(start, steps):
        done = step / steps
        now = (
            lr
            * min(1, (step + 1) / warmup)
            * (1 if done < flat else 0.5 + 0.5 * np.cos(np.pi * (done - flat) / (1 - flat)))
        )
        for group in optimizer.param_groups:
            group["lr"] = float(now)
        loss = loss_of(step, np.random.default_rng((hash_of(stage), step, rank)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if average:
            flat_grads = torch.cat(
                [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in parameters]
            )
            dist.all_reduce(flat_grads)
            for p, g in zip(
                parameters, (flat_grads / world).split([p.numel() for p in parameters]), strict=True
            ):
                p.grad = g.view_as(p)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if ema:
            torch._foreach_lerp_(
                mean, [p.detach() for p in parameters], 1 - min(ema, (step + 1) / (step + 10))
            )
        if rank == 0 and (step % 100 == 0 or step == steps - 1):
            speed = (time.time() - began) / (step - start + 1)
            line = dict(
                stage=stage,
                step=step,
                loss=round(loss.item(), 4),
                lr=round(float(now), 6),
                s_per_step=round(speed, 4),
                eta_min=round(speed * (steps - step) / 60, 1),
            )
            print(json.dumps(line), flush=True)
        if rank == 0 and ((step + 1) % 1000 == 0 or step == steps - 1):
            state = dict(
                modules={n: m.state_dict() for n, m in modules.items()},
                optimizer=optimizer.state_dict(),
                mean=mean,
                step=step + 1,
            )
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
    if ema:
        for p, m in zip(parameters, mean, strict=True):
            p.data.copy_(m)
    dist.barrier()


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[:4].ljust(4), "big")


def reconstruct_psnr(vae, composer, n=128):
    """Mean PSNR in dB over held-out pictures (pairs of object and background that training never draws)."""
    rng = np.random.default_rng(10**6)
    pictures = composer.draw([composer.plan(rng, held_out=True) for _ in range(n)], rng)
    with torch.no_grad():
        back = torch.cat(
            [vae.decode(vae.encode(x).latent_dist.mean).sample for x in pictures.split(16)]
        ).clamp(-1, 1)
    return float((10 * torch.log10(4 / (pictures - back).square().mean((1, 2, 3)))).mean()), pictures, back


def train_vae(args, composer):
    vae = make_vae()
    full_from = int(args.vae_steps * 0.72)

    def loss_of(step, rng):
        n = 20 if step < full_from else 8
        pictures = composer.draw([composer.plan(rng) for _ in range(n)], rng)
        if step < full_from:  # 32 x 32 crops
            y, x = rng.integers(0, SIZE // 2 + 1, (2, n))
            pictures = torch.stack(
                [p[:, a : a + 32, b : b + 32] for p, a, b in zip(pictures, y, x, strict=True)]
            )
        posterior = vae.encode(pictures).latent_dist
        back = vae.decode(
            posterior.mean
            + posterior.std * torch.from_numpy(rng.standard_normal(posterior.mean.shape)).float()
        ).sample
        error = back - pictures
        return (
            error.abs().mean()
            + 2 * error.square().mean()
            + 2e-4 * posterior.kl().mean() / (pictures[0].numel() / 192)
        )

    fit("vae", args, dict(vae=vae), loss_of, args.vae_steps, 2e-3, ema=0.998)
    with torch.no_grad():
        rng = np.random.default_rng(7)
        latents = torch.cat(
            [
                vae.encode(composer.draw([composer.plan(rng) for _ in range(64)], rng)).latent_dist.mean
                for _ in range(8)
            ]
        )
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    return vae.eval().requires_grad_(False)


def train_clip(args, composer, tokenizers):
    torch.manual_seed(1)
    one, two, vision = make_text_encoders(tokenizers[0])
    extra = torch.nn.ParameterDict(
        dict(
            head=torch.nn.Parameter(torch.randn(64, 128) / 8), scale=torch.nn.Parameter(torch.tensor(2.6592))
        )
    )

    def loss_of(step, rng):
        plans = [composer.plan(rng) for _ in range(96)]
        pictures, texts = composer.draw(plans, rng), [composer.describe(p, rng) for p in plans]
        if rng.random() < 0.3:  # soft pictures too, so that it can judge a small generator's
            pictures = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
        image = F.normalize(vision(pictures).image_embeds, dim=-1)
        first = F.normalize(
            one(token_ids(tokenizers[0], texts, "longest")).pooler_output @ extra["head"], dim=-1
        )
        second = F.normalize(two(token_ids(tokenizers[1], texts, "longest")).text_embeds, dim=-1)
        target, scale = torch.arange(len(texts)), extra["scale"].exp().clamp(max=50)
        loss = 0.0
        for text in (first, second):
            logits = scale * image @ text.T
            loss = loss + (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 4
        return loss

    fit("clip", args, dict(one=one, two=two, vision=vision, extra=extra), loss_of, args.clip_steps, 1.5e-3)
    return [m.eval().requires_grad_(False) for m in (one, two, vision)]


def picture_pool(args, composer, vae, n=25_000):
    """This process's own pictures, encoded once: (plans, scaled latents fp16 [n, 16, 8, 8]); captions are drawn anew each time."""
    path = args.state / f"latents{dist.get_rank()}.pt"
    rng = np.random.default_rng((99, dist.get_rank()))
    plans = [composer.plan(rng, objects=composer.drawn) for _ in range(n)]
    if not path.exists():
        with torch.no_grad():
            parts = [
                vae.encode(composer.draw(plans[i : i + 50], rng)).latent_dist.mean * vae.config.scaling_factor
                for i in range(0, n, 50)
            ]
        torch.save(torch.cat(parts).half(), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    dist.barrier()
    return plans, torch.load(path, weights_only=True)


def train_unet(args, composer, vae, tokenizers, encoders):
    torch.manual_seed(2)
    unet = make_unet()
    keep = DDPMScheduler(**BETAS).alphas_cumprod
    plans, latents = picture_pool(args, composer, vae)

    def loss_of(step, rng):
        n = 32
        rows = rng.integers(0, len(plans), n)
        with torch.no_grad():
            context, pooled = embed([composer.describe(plans[i], rng) for i in rows], tokenizers, encoders)
        x = latents[rows].float()
        kept = torch.from_numpy(
            rng.random(n) > 0.1
        ).float()  # one in ten without a caption: zeros, as SDXL's pipeline does
        noise = torch.from_numpy(rng.standard_normal(x.shape)).float()
        t = torch.from_numpy((rng.permutation(n) + rng.random(n)) * (1000 / n)).long()  # stratified
        a = keep[t].view(-1, 1, 1, 1)
        ids = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE]).float().repeat(n, 1)
        odd = rng.random(n) < 0.3  # other original sizes and crops say nothing here; learn that
        ids[odd, :2] = torch.from_numpy(rng.integers(SIZE, 1025, (odd.sum(), 2))).float()
        ids[odd, 2:4] = torch.from_numpy(rng.integers(0, SIZE, (odd.sum(), 2))).float()
        out = unet(
            a.sqrt() * x + (1 - a).sqrt() * noise, t, context * kept.view(-1, 1, 1),
            added_cond_kwargs=dict(text_embeds=pooled * kept.view(-1, 1), time_ids=ids),
        ).sample  # fmt: skip
        # every noise level about equal: the plain mean leaves little for high noise, where a picture's shapes are decided
        weight = (1 / keep[t]).clamp(max=16)
        return (weight * (out - noise).square().mean((1, 2, 3))).mean() / 4

    fit("unet", args, dict(unet=unet), loss_of, args.unet_steps, 1e-3, flat=0.6, ema=0.999)
    return unet.eval()


def main(rank, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{args.state.resolve()}/rendezvous", rank=rank, world_size=args.processes
    )
    torch.manual_seed(0)
    composer = Composer(args.state)
    tokenizers = make_tokenizers(args.state / "tokenizer", composer)
    vae = train_vae(args, composer)
    psnr, pictures, back = reconstruct_psnr(vae, composer)
    if rank == 0:
        print(
            json.dumps(dict(vae_psnr_db=round(psnr, 2), scaling_factor=vae.config.scaling_factor)), flush=True
        )
    if args.until == "vae":
        return save_pairs(args, rank, pictures, back)
    encoders = train_clip(args, composer, tokenizers)
    if args.until == "clip":
        return
    unet = train_unet(args, composer, vae, tokenizers, encoders)
    if rank == 0:
        export(args, vae, unet, tokenizers, encoders)


def save_pairs(args, rank, pictures, back):
    if rank == 0:
        from PIL import Image

        rows = torch.cat([torch.cat([pictures[:64], back[:64]], -1)]).add(1).mul(127.5).round().byte()
        Image.fromarray(
            rows.view(8, 8, 3, 64, 128).permute(0, 3, 1, 4, 2).reshape(512, 1024, 3).numpy()
        ).save(args.state / "vae.png")


def export(args, vae, unet, tokenizers, encoders):
    """Write the diffusers layout in fp16, and the vision tower beside it."""
    with torch.no_grad():  # the UNet has learnt the posterior's mean: make the posterior that sharp (log-variance -20 for every latent)
        vae.quant_conv.weight[vae.config.latent_channels :] = 0
        vae.quant_conv.bias[vae.config.latent_channels :] = -20
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    pipeline = StableDiffusionXLPipeline(
        vae=vae, unet=copy.deepcopy(unet), tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], text_encoder=encoders[0], text_encoder_2=encoders[1],
        scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(args.output)
    encoders[2].half().save_pretrained(args.output / "vision_encoder")
    for config in args.output.glob(
        "*_encoder*/config.json"
    ):  # transformers loads in this dtype when none is asked for, diffusers in fp32
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for weights in args.output.glob("*/*.safetensors"):
        weights.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--state", type=Path, default=Path("build/tiny_base"), help="where a stopped build resumes from"
    )
    parser.add_argument("--output", type=Path, default=Path("gralora_diffusion/tiny"))
    parser.add_argument("--vae_steps", type=int, default=10000)
    parser.add_argument("--clip_steps", type=int, default=1200)
    parser.add_argument(
        "--unet_steps",
        type=int,
        default=26000,
        help="may be changed when resuming: the decay begins at 60 %%",
    )
    parser.add_argument(
        "--until", choices=["vae", "clip", "unet"], default="unet", help="stop after this stage"
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    Composer(options.state)  # pictures first, once
    (options.state / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(main, (options,), nprocs=options.processes)
