"""Train the embedded tiny SDXL base from scratch and write it in diffusers layout.

    python scripts/tiny_base/build_tiny_base.py --state build/tiny_base --output gralora_diffusion/tiny

Stages: sprites (npm) -> vae -> clip -> unet -> export; a stopped build resumes from --state.  On two cores,
two processes of one thread each with averaged gradients are faster than two threads of one process.
Needs npm and pip install -e ".[build]".  Takes about 25 + 12 + 150 minutes on two free cores.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
import torch.distributed as dist
from bpe import make_tokenizers
from composer import Composer
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from models import BETAS
from PIL import Image
from stages import reconstruct, train_encoders, train_unet, train_vae


def main() -> None:
    args = parse()
    args.state.mkdir(parents=True, exist_ok=True)
    Composer(args.state)  # downloads the sprites, once
    (args.state / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(build, (args,), nprocs=args.processes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--state", type=Path, default=Path("build/tiny_base"), help="folder that a stopped build resumes from"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gralora_diffusion/tiny"), help="folder for the base model"
    )
    parser.add_argument("--vae_steps", type=int, default=10000, help="default: 10000")
    parser.add_argument("--clip_steps", type=int, default=1200, help="default: 1200")
    parser.add_argument(
        "--unet_steps",
        type=int,
        default=26000,
        help="default: 26000; a resumed build may have more, since the learning rate decays from 60 %% on",
    )
    parser.add_argument(
        "--until", choices=["vae", "clip", "unet"], default="unet", help="stop after this stage"
    )
    parser.add_argument("--processes", type=int, default=2, help="of one thread each (default: 2)")
    return parser.parse_args()


def build(rank: int, args: argparse.Namespace) -> None:
    """All stages, in one of the processes."""
    torch.set_num_threads(1)
    rendezvous = f"file://{args.state.resolve()}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    composer = Composer(args.state)
    tokenizers = make_tokenizers(args.state / "tokenizer", composer)
    vae = train_vae(args.state, composer, args.vae_steps)
    psnr, images, decoded = reconstruct(vae, composer)
    if rank == 0:
        quality = dict(vae_psnr_db=round(psnr, 2), scaling_factor=vae.config.scaling_factor)
        print(json.dumps(quality), flush=True)
    if args.until == "vae":
        if rank == 0:
            save_pairs(args.state / "vae.png", images, decoded)
        return
    encoders = train_encoders(args.state, composer, tokenizers, args.clip_steps)
    if args.until == "clip":
        return
    unet = train_unet(args.state, composer, vae, tokenizers, encoders, args.unet_steps)
    if rank == 0:
        export(args.output, vae, unet, tokenizers, encoders)


def save_pairs(path: Path, images: torch.Tensor, decoded: torch.Tensor) -> None:
    """A grid of 8 x 8 images, each with its reconstruction at its right."""
    pairs = torch.cat([images[:64], decoded[:64]], -1).add(1).mul(127.5).round().byte()
    grid = pairs.view(8, 8, 3, 64, 128).permute(0, 3, 1, 4, 2).reshape(512, 1024, 3)
    Image.fromarray(grid.numpy()).save(path)


def export(folder: Path, vae, unet, tokenizers, encoders) -> None:
    """Write the diffusers layout in fp16, with the image encoder in vision_encoder."""
    # The UNet was trained on the posterior's mean: make the posterior that sharp, with a log-variance of -20.
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.latent_channels :] = 0
        vae.quant_conv.bias[vae.config.latent_channels :] = -20
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        unet=copy.deepcopy(unet),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    encoders[2].half().save_pretrained(folder / "vision_encoder")
    # Where no dtype is asked for, transformers takes this one, and diffusers fp32.
    for config in folder.glob("*_encoder*/config.json"):
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for weights in folder.glob("*/*.safetensors"):
        weights.chmod(0o644)


if __name__ == "__main__":
    main()
