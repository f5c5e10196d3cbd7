"""A run's validation images: the same prompts and seeds before training, on the way, and at the end."""

import time
import warnings
from pathlib import Path

import torch
from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.images import open_image
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.sdxl.sampling import as_trained, draw, embed_prompts, sheet


class Previews:
    """Draws the validation prompts into run/samples/step-N; with several processes each one draws its share.

    The prompts are embedded here, so that the text encoders may leave memory; the VAE waits on the CPU while the UNet trains.
    """

    def __init__(self, pipeline, config: TrainConfig, run: Path, process: int = 0, processes: int = 1):
        self.pipeline, self.config, self.folder = pipeline, config, run / "samples"
        wanted = [(prompt, n) for prompt in prompts_of(config) for n in range(config.num_validation_images)]
        self.mine = [(i, *what) for i, what in enumerate(wanted)][process::processes]
        self.embeds = None if config.train_text_encoder else embed_prompts(pipeline, prompts_of(config))
        self.vae, self.seconds = pipeline.vae, 0.0  # the time that one draw() takes

    def of_step(self, step: int) -> Path:
        return self.folder / f"step-{step:05d}"

    def draw(self, step: int) -> None:
        """Write samples/step-`step`/00.png, ...; what is there already is drawn again.  Running out of memory costs the images, not the run."""
        pipeline, config, began = self.pipeline, self.config, time.monotonic()
        folder = self.of_step(step)
        folder.mkdir(parents=True, exist_ok=True)
        training = [
            m
            for m in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
            if m is not None and m.training
        ]
        pipeline.vae = self.vae.to(pipeline.unet.device)
        for model in training:
            model.eval()
        try:
            images = draw(
                pipeline, [(prompt, config.seed + n) for _, prompt, n in self.mine], config.num_inference_steps, config.guidance_scale,
                config.train_batch_size, config.resolution, self.embeds,
                as_trained(pipeline.scheduler, config.prediction_type, config.rescale_betas_zero_snr) if step else None,
            )  # fmt: skip
            for (i, _, _), image in zip(self.mine, images, strict=True):
                if all(low == high for low, high in image.getextrema()):
                    warnings.warn(
                        f"image {i} of step {step} has a single colour: the model or the VAE may have overflowed",
                        stacklevel=2,
                    )
                save_image(image, folder / f"{i:02d}.png")
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            warnings.warn(
                f"no memory for the sample images of step {step}: they are left out, the training goes on",
                stacklevel=2,
            )
        finally:
            for model in training:
                model.train()
            self.vae.to("cpu")
            pipeline.vae, self.seconds = None, time.monotonic() - began


def prompts_of(config: TrainConfig) -> list[str]:
    return [prompt.strip() for prompt in config.validation_prompt.split("|")]


def drawn(run: Path, step: int) -> list[Image.Image]:
    """The images of samples/step-`step`, in order."""
    return [open_image(path) for path in sorted((run / "samples" / f"step-{step:05d}").glob("*.png"))]


def subject_of(images: list[TrainingImage], config: TrainConfig) -> list[Image.Image]:
    """Some of the training images, in small; read when the run begins, since they may be gone when it ends."""
    return [crop_square(p.open()).resize((config.resolution, config.resolution)) for p in images[:6]]


def save_comparison(run: Path, subject: list[Image.Image], step: int, config: TrainConfig) -> None:
    """before_after.png: some of the training images, then the same prompts and seeds at step 0 and at `step`."""
    before, after = drawn(run, 0)[:6], drawn(run, step)[:6]
    if not before or len(before) != len(after):
        return
    prompts = [p for p in prompts_of(config) for _ in range(config.num_validation_images)]
    drawn_from = {"base": before, "with the adapter": after}
    page = sheet(drawn_from, prompts[: len(before)], above={"training images": subject[: len(before)]})
    save_image(page, run / "before_after.png")


def save_image(image: Image.Image, path: Path) -> None:
    """A PNG, complete or absent."""
    with complete_or_absent(path) as part:
        image.save(part, format="PNG")


def crop_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
