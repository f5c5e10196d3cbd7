"""What a run takes from its base where no option says it."""

import dataclasses

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.sample_prompts import sample_prompts, trigger_of
from gralora_diffusion.sdxl.base import resolution_of
from gralora_diffusion.sdxl.flow import FLOW, flow_objective
from gralora_diffusion.sdxl.objective import objective_of_scheduler
from gralora_diffusion.training.optim import learning_rates


def objective_of(config: TrainConfig, pipeline) -> dict:
    """What a run trains its adapter to predict, see sdxl/objective.py; config: with the base's defaults."""
    if config.prediction_type == FLOW:
        return flow_objective(config.flow_shift)
    of_base = objective_of_scheduler(pipeline.scheduler.config)["rescale_betas_zero_snr"]
    zero_snr = config.rescale_betas_zero_snr or of_base
    return dict(prediction_type=config.prediction_type, rescale_betas_zero_snr=zero_snr)


def with_base_defaults(
    config: TrainConfig, pipeline, images: list[TrainingImage], mixed_precision: str, processes: int
) -> TrainConfig:
    """The config with every value that a run takes from the base or the images, as config.json records it."""
    rates = learning_rates(config, processes)
    of_base = objective_of_scheduler(pipeline.scheduler.config)
    predicts = config.prediction_type or of_base["prediction_type"]
    shift = config.flow_shift
    if predicts == FLOW and shift is None:
        shift = of_base.get("flow_shift", 1.0)
    return dataclasses.replace(
        config,
        mixed_precision=mixed_precision,
        resolution=config.resolution or resolution_of(pipeline),
        instance_prompt=trigger_of(config, images),
        validation_prompt="|".join(sample_prompts(config, images)),
        text_encoder_lr=rates["text_encoder"] if config.train_text_encoder else None,
        text_encoder_2_lr=rates["text_encoder_2"] if config.train_text_encoder else None,
        prediction_type=predicts,
        flow_shift=shift,
    )
