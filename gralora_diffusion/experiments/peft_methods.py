"""Methods of PEFT, each by its config class."""

import warnings
from collections.abc import Callable

import torch
from torch import nn

from gralora_diffusion.experiments.adapted import Adapted, Spec, trainable
from gralora_diffusion.options import ConfigError

EVA_BATCHES = 8  # that EVA's start is computed from


def build_peft(model: nn.Module, layers: dict[str, nn.Linear], spec: Spec, batches) -> Adapted:
    """batches(i) runs the model on batch i."""
    import peft

    method = spec.about
    options = method.peft_options(spec.size, spec.seed) | method.fixed_options
    if method.inputs_start:
        options["eva_config"] = peft.EvaConfig(rho=1.0)  # rho 1: the same rank everywhere
    config = getattr(peft, method.peft)(target_modules=list(layers), **options)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that EVA could do with less memory
        wrapped = peft.get_peft_model(model, config)
    if method.inputs_start and batches is not None:
        start_from_inputs(wrapped, spec.size, batches)

    def merge() -> None:
        wrapped.merge_and_unload()

    return Adapted(spec, trainable(model), merge)


def start_from_inputs(wrapped, rank: int, batches: Callable[[int], object]) -> None:
    """EVA's A from the layers' inputs in EVA_BATCHES batches."""
    import peft

    def forward(_, index) -> object:
        return batches(int(index))

    def rows(inputs, *_) -> torch.Tensor:
        return eva_inputs(inputs, rank)

    peft.initialize_lora_eva_weights(
        wrapped,
        list(torch.arange(EVA_BATCHES)),
        forward_fn=forward,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=rows,
        show_progress_bar=False,
    )


def eva_inputs(inputs, rank: int) -> torch.Tensor:
    """A layer's inputs as rows [n, N].  Raises ConfigError for fewer than `rank`, which PEFT would skip and
    never finish.
    """
    rows = (inputs[0] if isinstance(inputs, tuple) else inputs).flatten(0, -2)
    if len(rows) < rank:
        raise ConfigError(
            f"eva of rank {rank} needs {rank} inputs of each layer in a batch, and one layer has "
            f"{len(rows)}: take larger batches"
        )
    return rows
