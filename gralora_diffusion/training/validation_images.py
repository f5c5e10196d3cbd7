"""A run's sample images: the same prompts and seeds before training, during it, and at the end."""

import contextlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from gralora_diffusion.checks import parse_size
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.images import open_image
from gralora_diffusion.devices import is_out_of_memory, release_unused, total_memory
from gralora_diffusion.formats.run_files import name_of, stem_of
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.image_text import save_image
from gralora_diffusion.sdxl.placement import DECODING, bring, bytes_of, can_move, peak_of_vae, pixels
from gralora_diffusion.sdxl.prompt_chunks import read_prompt
from gralora_diffusion.sdxl.prompt_embeds import embed_prompts
from gralora_diffusion.sdxl.sampling import as_trained, generate
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings, UsedAdapter
from gralora_diffusion.sdxl.schedulers import scheduler_named
from gralora_diffusion.sdxl.sheet import sheet
from gralora_diffusion.training.compiled import uncompiled
from gralora_diffusion.training.run_time import counter


class Previews:
    """Generates the validation prompts into run/samples/step-N; each process generates its share.

    The prompts are embedded here, so that the text encoders can be freed; the VAE waits on the CPU while the
    UNet trains.
    """

    def __init__(self, pipeline, config: TrainConfig, run: Path, process: int = 0, processes: int = 1):
        self.pipeline, self.config, self.folder = pipeline, config, run / "samples"
        self.name = stem_of(run)
        self.settings = settings_of(config)
        prompts = prompts_of(config)
        wanted = []  # (index of the image, prompt, seed)
        for prompt in prompts:
            for n in range(config.num_validation_images):
                wanted.append((len(wanted), prompt, config.seed + n))
        self.mine = wanted[process::processes]
        self.digits = max(2, len(str(len(wanted) - 1)))  # so that names are in order of number
        self.embeds = None if config.train_text_encoder else embed_prompts(pipeline, prompts, self.settings)
        self.vae = pipeline.vae
        self.seconds = 0.0  # that the last generate() took

    def of_step(self, step: int) -> Path:
        return self.folder / f"step-{step:05d}"

    def memory(self, in_use: int) -> int:
        """Bytes at the peak of generate() on a GPU, where so many are in use before; else `in_use`."""
        unet, total = self.pipeline.unet, total_memory(self.pipeline.unet.device)
        if total is None:
            return in_use
        frozen = bytes_of(unet, frozen=True) if can_move(unet) else 0
        size = pixels(self.settings.size)
        return peak_of_vae(DECODING, size, bytes_of(self.vae), in_use, frozen, total)

    def generate(self, step: int, report: Callable[[int, int], object] | None = None) -> None:
        """Write samples/step-`step`/00.png, ..., over what is there already.

        report: called with (images done, all of them) of this process.

        Images without enough memory, or whose numbers are not finite, are left out with a warning, and the
        run continues.
        """
        start = time.monotonic()
        folder = self.of_step(step)
        folder.mkdir(parents=True, exist_ok=True)
        pipeline = self.pipeline
        training = []
        for model in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
            if model is not None and model.training:
                training.append(model)
                model.eval()
        pipeline.vae = self.vae
        device = pipeline.unet.device
        try:
            with uncompiled() if self.config.compile else contextlib.nullcontext():
                images = self.images(step, report)
            for (index, _, _), image in zip(self.mine, images, strict=True):
                path = folder / f"{index:0{self.digits}d}.png"
                if image is None:
                    path.unlink(missing_ok=True)
                    continue
                if is_single_color(image):
                    problem = f"image {index} of step {step} has a single color"
                    warnings.warn(f"{problem}: the model or the VAE may have overflowed", stacklevel=2)
                save_image(image, path)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = f"out of memory for the sample images of step {step}"
            warnings.warn(f"{problem}: they are skipped, and training continues", stacklevel=2)
        finally:
            for model in training:
                model.train()
            self.vae.to("cpu")
            pipeline.vae = None
            release_unused(device)
            bring(pipeline, ("unet", "text_encoder", "text_encoder_2"), device, 0)
            self.seconds = time.monotonic() - start

    def images(self, step: int, report: Callable[[int, int], object] | None) -> list[Image.Image | None]:
        """This process's share; step 0 is the base, with its own scheduler.  Warns of each that is None.

        With --start_from it is the adapter to start from, which is for what the run trains.
        """
        config, scheduler = self.config, None
        if step or config.start_from:
            trained_with = config.prediction_type, config.rescale_betas_zero_snr, config.flow_shift
            scheduler = as_trained(self.pipeline.scheduler, *trained_with)
        problems = {}
        images = generate(
            self.pipeline,
            [(prompt, seed) for _, prompt, seed in self.mine],
            self.settings,
            config.train_batch_size,
            self.embeds,
            scheduler,
            origin=self.origin(step),
            progress=counter(len(self.mine), report) if report and self.mine else None,
            problems=problems,
        )
        for problem in problems.values():
            left_out = "it is left out, and training continues"
            warnings.warn(f"sample images of step {step}: {problem}; {left_out}", stacklevel=2)
        return images

    def origin(self, step: int) -> Origin:
        """What the images of a step are from, for the texts in their files."""
        config = self.config
        name = self.name
        if not step:
            name = name_of(config.start_from) if config.start_from else None
        return Origin.of(
            config.pretrained_model_name_or_path,
            config.pretrained_vae_model_name_or_path,
            config.revision,
            config.variant,
            (UsedAdapter(name, 1.0),) if name else (),
            step,
        )


def settings_of(config: TrainConfig) -> SamplingSettings:
    """How a run's sample images are generated; config: with the base's defaults."""
    side = config.resolution
    size = parse_size(config.validation_size, "--validation_size") if config.validation_size else (side, side)
    return SamplingSettings(
        config.num_inference_steps,
        config.guidance_scale,
        size,
        config.validation_negative_prompt or "",
        config.validation_scheduler,
        config.clip_skip,
    )


def check_sample_options(pipeline, config: TrainConfig) -> None:
    """Raises ConfigError for sample prompts that cannot be read, and a scheduler that does not fit."""
    if config.validation_scheduler is not None:
        trained_with = config.prediction_type, config.rescale_betas_zero_snr, config.flow_shift
        for of_base in (pipeline.scheduler, as_trained(pipeline.scheduler, *trained_with)):
            scheduler_named(config.validation_scheduler, of_base, "validation_scheduler")
    rules = settings_of(config).rules()
    given = dict(validation_prompt=prompts_of(config))
    given["validation_negative_prompt"] = [config.validation_negative_prompt or ""]
    for option, prompts in given.items():
        for prompt in prompts:
            try:
                read_prompt(pipeline, prompt, rules)
            except ConfigError as error:
                raise ConfigError(f"--{option}: {error}", option=option) from None


def is_single_color(image: Image.Image) -> bool:
    return all(low == high for low, high in image.getextrema())


def prompts_of(config: TrainConfig) -> list[str]:
    return [prompt.strip() for prompt in config.validation_prompt.split("|")]


def samples_of(run: Path, step: int) -> list[Image.Image]:
    """The images of samples/step-`step`, in order."""
    return [open_image(path) for path in sorted((run / "samples" / f"step-{step:05d}").glob("*.png"))]


def thumbnails(images: list[TrainingImage], config: TrainConfig) -> list[Image.Image]:
    """Up to six training images, small; read when the run starts, since they may be gone when it ends."""
    side = config.resolution
    return [crop_square(image.open()).resize((side, side)) for image in images[:6]]


def label_of_start(start_from: str | None) -> str:
    """What the images of step 0 are of: the base, or the adapter of --start_from."""
    return f"start: {name_of(start_from)}" if start_from else "base model"


def save_comparison(run: Path, training_images: list[Image.Image], step: int, config: TrainConfig) -> None:
    """before_after.png: some training images, then the same prompts and seeds at step 0 and at `step`."""
    before, after = samples_of(run, 0)[:6], samples_of(run, step)[:6]
    if not before or len(before) != len(after):
        return
    n = len(before)
    prompts = [p for p in prompts_of(config) for _ in range(config.num_validation_images)]
    first = "start adapter" if config.start_from else "base"
    rows = {first: before, "with the adapter": after}
    page = sheet(rows, prompts[:n], above={"training images": training_images[:n]})
    save_image(page, run / "before_after.png")


def crop_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
