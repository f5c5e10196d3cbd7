"""One training run: from a TrainConfig to a run folder with config.json, metrics.jsonl, adapter files and samples."""

import json
import math
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from tqdm import tqdm

from .config import ConfigError, TrainConfig, to_dict
from .data import EXAMPLE, EXAMPLE_PROMPT, choose, encode_pictures, find_pictures, open_picture
from .exchange import Adapter
from .formats import COMFYUI, DIFFUSERS, KOHYA, NATIVE, file_sizes, write_comfyui, write_diffusers, write_native
from .injection import adapter_parameters, adapters, inject, table
from .loss import add_noise, diffusion_loss, draw
from .sampling import sample, sheet
from .sdxl import COMPONENTS, encode_prompts, load_sdxl, resolution_of, shapes

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PLACES = ("", " on a blue background", " in the snow", " on the beach")


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


def train(config: TrainConfig) -> Path:
    """Train, write the run folder, and return its path.  Raises ConfigError before anything is written, TrainingError later."""
    config = config.resolved()
    pictures, instance_prompt = find_pictures(*instance(config)), instance(config)[1]
    run = run_folder(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    dtype = DTYPES.get(accelerator.mixed_precision, torch.float32)
    base = dict(path=config.pretrained_model_name_or_path, vae=config.pretrained_vae_model_name_or_path, dtype=dtype)
    base |= dict(revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
    pipeline = load_sdxl(**base)
    unet, resolution = pipeline.unet, config.resolution or resolution_of(pipeline)
    models = inject_all(pipeline.components, config)
    pipeline.to(accelerator.device)

    main = accelerator.is_main_process
    if main:
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
        print(f"{table(all_layers(models)).splitlines()[-1]} -> {run}", flush=True)
    prompts = [p.strip() for p in config.validation_prompt.split("|")] if config.validation_prompt else [instance_prompt + place for place in PLACES]
    drawing = dict(prompts=prompts, seed=config.seed, num_images=config.num_validation_images, resolution=resolution)
    drawing |= dict(num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale)
    before = save_samples(run, 0, sample(pipeline, **drawing)) if main and not config.skip_final_inference else []

    records = encode_pictures(pictures, pipeline.vae, config, resolution)
    captions = sorted({p.caption for p in pictures})
    with torch.no_grad():
        known = {c: [e.cpu() for e in encode_prompts(pipeline, [c])] for c in captions}
    alphas = pipeline.scheduler.alphas_cumprod.float()
    prediction, timesteps = pipeline.scheduler.config.prediction_type, pipeline.scheduler.config.num_train_timesteps
    if not config.train_text_encoder:
        pipeline = None  # the VAE and the text encoders leave memory; what they had to say is in records and known

    groups = [dict(params=list(adapter_parameters(unet).values()), lr=config.learning_rate)]
    encoders = [p for name, m in models.items() if name != "unet" for p in adapter_parameters(m).values()]
    if encoders:
        groups.append(dict(params=encoders, lr=config.text_encoder_lr or config.learning_rate))
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=config.adam_weight_decay, eps=config.adam_epsilon)
    steps = steps_of(config, len(records), accelerator.num_processes)
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=steps)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    for model in models.values():
        model.train()
    optimizer = accelerator.prepare(optimizer)
    parameters = [p for group in groups for p in group["params"]]

    def loss_at(index: int) -> torch.Tensor:
        """The loss of batch number `index`, counted over all processes."""
        positions = range(index * config.train_batch_size, (index + 1) * config.train_batch_size)
        batch = choose(records, positions, config.seed)
        posterior, noise, t = draw(batch[0].moments.shape[1:], timesteps, config.seed, positions)
        mean, std = torch.stack([r.moments for r in batch]).unbind(1)
        latents = mean + std * posterior
        noisy = add_noise(latents, noise, t, alphas)
        with accelerator.autocast():
            if encoders:
                embeds, pooled = encode_prompts(pipeline, [r.caption for r in batch])
            else:
                embeds, pooled = (torch.cat(e) for e in zip(*(known[r.caption] for r in batch), strict=True))
            conditions = dict(text_embeds=pooled.to(accelerator.device), time_ids=torch.stack([r.time_ids for r in batch]).to(accelerator.device))
            predicted = unet(
                noisy.to(accelerator.device, dtype), t.to(accelerator.device), embeds.to(accelerator.device), added_cond_kwargs=conditions
            ).sample
        wanted = [x.to(accelerator.device) for x in (latents, noise, t, alphas)]
        return diffusion_loss(predicted, *wanted, prediction, config.snr_gamma)

    started, smooth = time.monotonic(), None
    bar = tqdm(range(1, steps + 1), desc="training", unit="step", disable=not accelerator.is_local_main_process)
    for step in bar:
        torch.manual_seed(config.seed * 1_000_003 + step * 1009 + accelerator.process_index)  # dropout
        total = 0.0
        for micro in range((step - 1) * config.gradient_accumulation_steps, step * config.gradient_accumulation_steps):
            loss = loss_at(micro * accelerator.num_processes + accelerator.process_index) / config.gradient_accumulation_steps
            accelerator.backward(loss)
            total += loss.item()
        average_gradients(parameters, accelerator)
        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        if not math.isfinite(total) or not (math.isfinite(norm) or accelerator.mixed_precision == "fp16"):  # fp16's scaler skips such a step
            what = "loss" if not math.isfinite(total) else "gradient"
            raise TrainingError(f"the {what} of step {step} is not finite, and the step was not applied: lower --learning_rate")
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = total if smooth is None else 0.95 * smooth + 0.05 * total
        bar.set_postfix(loss=f"{smooth:.4f}")
        if main:
            line = dict(step=step, loss=total, lr=lr, grad_norm=norm, seconds=round(time.monotonic() - started, 3))
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    accelerator.wait_for_everyone()
    if main:
        prompts_seen = dict(instance_prompt=instance_prompt, validation_prompts=prompts)
        save_dtype = torch.float32 if dtype == torch.float32 else torch.float16
        adapter = Adapter.from_models(models, config.pretrained_model_name_or_path or "embedded tiny base", prompts_seen)
        write_native(run / NATIVE, adapter)
        write_diffusers(run / DIFFUSERS, adapter, save_dtype)
        write_comfyui(run / COMFYUI, adapter)
        if config.output_kohya_format:
            write_comfyui(run / KOHYA, adapter, sgm=False)
        if before:
            for model in models.values():
                model.eval()
            after_pipeline = pipeline or load_sdxl(**base, unet=unet).to(accelerator.device)
            after = save_samples(run, steps, sample(after_pipeline, **drawing))
            save_comparison(run, pictures, before, after, [p for p in prompts for _ in range(config.num_validation_images)])
    accelerator.end_training()
    return run


def average_gradients(parameters: list, accelerator) -> None:
    """Over all processes, in one message: adapters are small, and the frozen base needs no wrapper for it."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    flat = accelerator.reduce(flat, "mean")
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)


def instance(config: TrainConfig) -> tuple[Path, str]:
    """(folder, prompt) of the pictures to learn."""
    if config.instance_data_dir is None:
        return EXAMPLE, config.instance_prompt or EXAMPLE_PROMPT
    return Path(config.instance_data_dir), config.instance_prompt


def inject_all(components: dict, config: TrainConfig) -> dict:
    """Adapt the UNet, and both text encoders if they train: {component: model}.  Raises ConfigError when a size does not fit."""
    models = {name: components[name] for name in (COMPONENTS if config.train_text_encoder else ("unet",))}
    torch.manual_seed(config.seed)
    for name, model in models.items():
        try:
            inject(model, config.adapter)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    return models


def all_layers(models: dict) -> dict:
    return {f"{name}.{path}": layer for name, model in models.items() for path, layer in adapters(model).items()}


def run_folder(config: TrainConfig) -> Path:
    """The folder to write: output_dir, which must not hold a run yet, or a new runs/NAME."""
    if config.output_dir is not None:
        run = Path(config.output_dir)
        if (run / "config.json").exists() or (run.exists() and not run.is_dir()):
            raise ConfigError(f"{run} holds a run already, or is a file: choose another --output_dir")
    else:
        subject = "robot" if config.instance_data_dir is None else Path(config.instance_data_dir).resolve().name
        name = f"{subject}-{config.adapter.method}-r{config.adapter.rank}"
        run = next(p for n in range(1, 10**6) if not (p := Path("runs") / (name if n == 1 else f"{name}-{n}")).exists())
    nearest = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"{run} cannot be written: no permission in {nearest}")
    return run


def save_samples(run: Path, step: int, images: list) -> list:
    folder = run / "samples" / f"step-{step:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    return images


def save_comparison(run: Path, pictures: list, before: list, after: list, prompts: list[str]) -> None:
    """before_after.png: some of the training pictures, then the same prompts and seeds without and with the adapter."""
    shown = min(len(before), 6)
    subject = [open_picture(p.path) for p in pictures[:shown]]
    side = min(min(i.size) for i in before)
    subject = [crop_square(i).resize((side, side)) if min(i.size) > side else crop_square(i) for i in subject]
    rows = {"training pictures": subject, "base": before[:shown], "with the adapter": after[:shown]}
    sheet(rows, prompts[:shown]).save(run / "before_after.png")


def crop_square(image):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def write_text(path: Path, text: str) -> None:
    """Complete or absent."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def plan(config: TrainConfig) -> str:
    """What train(config) would do, from shapes alone: layers, parameters, memory, files, steps.  Writes nothing."""
    config = config.resolved()
    pictures, run = find_pictures(*instance(config)), run_folder(config)
    components = shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir)
    unet, tokens = components["unet"], components["text_encoder"].config.max_position_embeddings
    layers = all_layers(inject_all(components, config))
    resolution = config.resolution or unet.config.sample_size * 8
    dtype = DTYPES[config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")]
    memory = forecast(unet.config, config, resolution, dtype, tokens)
    native, exported = file_sizes(layers)
    files = {NATIVE: native, DIFFUSERS: exported if dtype == torch.float32 else exported // 2, COMFYUI: exported // 2}
    files |= {KOHYA: exported // 2} if config.output_kohya_format else {}
    memory["adapters"] = 4 * native  # fp32: the parameters, their gradients, and AdamW's two moments
    if config.train_text_encoder:
        encoders = [p for name in COMPONENTS[1:] for p in components[name].parameters() if not p.requires_grad]
        memory["text encoders"] = sum(p.numel() for p in encoders) * torch.finfo(dtype).bits // 8
    steps, per_step = steps_of(config, len(pictures), 1), config.train_batch_size * config.gradient_accumulation_steps
    return "\n".join(
        [
            json.dumps(to_dict(config), indent=2),
            table(layers),
            f"pictures: {len(pictures)} at {resolution} x {resolution} from {instance(config)[0]}",
            f"steps: {steps} of {per_step} picture(s) per process, {steps * per_step / len(pictures):.1f} passes",
            f"memory of a training step, about: {sum(memory.values()) / 2**30:.2f} GiB = "
            + " + ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items()),
            "files: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in files.items()),
            f"run folder: {run} (not made: this is a dry run)",
        ]
    )


def steps_of(config: TrainConfig, pictures: int, processes: int) -> int:
    per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    return config.max_train_steps or math.ceil(config.num_train_epochs * pictures / per_step)


def forecast(unet_config, config: TrainConfig, resolution: int, dtype, tokens: int = 77) -> dict[str, int]:
    """Bytes that a training step of the UNet needs, counted on fake tensors: the weights, the adapters with their gradients and
    AdamW's moments, and what the forward pass keeps for the backward pass (with checkpointing: the checkpoints and the largest block).
    """
    from diffusers import UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept, largest, default = {}, [0], torch.get_default_dtype()

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def open_block(module, *_):
        module.kept_before = sum(kept.values())

    def close_block(module, *_):
        largest[0] = max(largest[0], sum(kept.values()) - module.kept_before)

    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            unet = UNet2DConditionModel.from_config(unet_config).train()
            inject(unet, config.adapter)
            own = {p.untyped_storage()._cdata for p in unet.parameters()}
            n, side, c = config.train_batch_size, resolution // 8, unet.config.cross_attention_dim
            width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            inputs = (torch.empty(n, unet.config.in_channels, side, side), torch.zeros(n, dtype=torch.long), torch.empty(n, tokens, c))
            conditions = dict(text_embeds=torch.empty(n, width), time_ids=torch.empty(n, 6))
            for module in unet.modules():
                if type(module).__name__ in ("BasicTransformerBlock", "ResnetBlock2D"):
                    module.register_forward_pre_hook(open_block)
                    module.register_forward_hook(close_block)
            precision = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
            with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                out = unet(*inputs, added_cond_kwargs=conditions).sample
            activations = sum(kept.values())
            if config.gradient_checkpointing:
                kept.clear()
                unet.enable_gradient_checkpointing()
                with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                    out = unet(*inputs, added_cond_kwargs=conditions).sample  # noqa: F841 - alive while it is counted
                activations = sum(kept.values()) + largest[0]
            trainable = sum(p.numel() for p in unet.parameters() if p.requires_grad)
            weights = sum(p.numel() * p.element_size() for p in unet.parameters() if not p.requires_grad)
    finally:
        torch.set_default_dtype(default)
    return dict(weights=weights, adapters=16 * trainable, activations=activations)
