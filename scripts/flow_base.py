"""Turn the embedded base into a rectified flow: a full fine-tune on images that it generates itself.

    python scripts/flow_base.py --state build/flow    # minutes on two cores; the images are kept

STATE/base is a folder for --pretrained_model_name_or_path; STATE/images.png shows both bases on the same
prompts and noise.
"""

import argparse
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from gralora_diffusion import load_sdxl, sample
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.sdxl.base import Prompts, encode_images, encode_prompts, predict, time_ids
from gralora_diffusion.sdxl.sheet import sheet
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.loss import add_noise, target

OBJECTS = ("cat", "dog", "robot", "red apple", "banana", "house", "car", "rocket", "fish", "flower")
PLACES = ("", " on the grass", " in the snow", " on the beach", " on a blue background", " at night")
PROMPTS = [f"a photo of a {thing}{place}" for thing in OBJECTS for place in PLACES]
SHOWN = ["a photo of a cat on the beach", "a photo of a robot", "a photo of a red apple in the snow"]
DROPPED = 0.1  # share of rows without a caption, for guidance


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument(
        "--state", type=Path, default=Path("build/flow"), help="folder of data and the new base"
    )
    parser.add_argument("--images", type=int, default=4, help="images of each prompt to train on")
    parser.add_argument("--steps", type=int, default=2000, help="steps of 32 images")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    pipeline = load_sdxl()
    before = sample(pipeline, SHOWN, 7, 2, guidance_scale=3.0)
    data = data_of(pipeline, args.state / "data.safetensors", args.images)
    losses = fine_tune(pipeline, data, args.steps, args.rate)
    tenth = max(1, len(losses) // 10)
    print(f"loss: first tenth {sum(losses[:tenth]) / tenth:.4f}, last {sum(losses[-tenth:]) / tenth:.4f}")
    write(pipeline, args.state / "base")
    flow = load_sdxl(str(args.state / "base"))
    after = sample(flow, SHOWN, 7, 2, guidance_scale=3.0)
    columns = [prompt for prompt in SHOWN for _ in range(2)]
    sheet({"the base": before, "as a flow": after}, columns).save(args.state / "images.png")
    print(f"{args.state}/base, {args.state}/images.png")


def data_of(pipeline, file: Path, images: int) -> dict[str, torch.Tensor]:
    """{moments [n, 2, c, h, w], embeds, pooled} of images that the base generates, kept in a file."""
    if not file.exists():
        made = sample(pipeline, PROMPTS, 1000, images, guidance_scale=3.0, batch_size=24)
        moments = []
        for image in made:
            pixels = pipeline.image_processor.preprocess(image)
            with torch.no_grad():
                moments.append(encode_images(pipeline.vae, pixels)[0])
        with torch.no_grad():
            prompts = encode_prompts(pipeline, [*PROMPTS, ""])
        with complete_or_absent(file) as part:
            content = dict(moments=torch.stack(moments), embeds=prompts.embeds, pooled=prompts.pooled)
            save_file(content, part)
    return load_file(file)


def fine_tune(
    pipeline, data: dict[str, torch.Tensor], steps: int, rate: float, batch: int = 32
) -> list[float]:
    """Train all weights of the pipeline's UNet to predict noise - x_0; returns the losses."""
    unet = pipeline.unet.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    images, each = len(data["moments"]), len(data["moments"]) // (len(data["embeds"]) - 1)
    sizes = time_ids((64, 64), (0, 0), (64, 64)).expand(batch, 6)
    losses = []
    for step in tqdm(range(steps), "flow"):
        random = generator(0, step)
        chosen = torch.randint(images, (batch,), generator=random)
        mean, std = data["moments"][chosen].unbind(1)
        latents = mean + std * torch.randn(mean.shape, generator=random)
        noise = torch.randn(mean.shape, generator=random)
        timesteps = 1000 * torch.sigmoid(torch.randn(batch, generator=random))
        captions = chosen // each
        captions[torch.rand(batch, generator=random) < DROPPED] = len(data["embeds"]) - 1
        prompts = Prompts(data["embeds"][captions], data["pooled"][captions])
        noisy = add_noise(latents, noise, timesteps, None)
        error = predict(unet, noisy, timesteps, prompts, sizes) - target(
            latents, noise, timesteps, None, "flow"
        )
        loss = error.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    unet.eval().requires_grad_(False)
    return losses


def write(pipeline, folder: Path) -> None:
    """The pipeline in diffusers layout, with a scheduler that says what it is."""
    pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    main()
