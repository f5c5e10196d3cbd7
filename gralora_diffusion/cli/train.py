"""Train a GraLoRA, GoRA or LoRA adapter for SDXL on a few images.

Without options it trains on the embedded tiny base model and the bundled images of a robot, in about a minute.
--dry_run prints the resolved config and the plan: layers, parameters, memory, files, steps, time.
"""

import sys

from gralora_diffusion.checks import check_paths
from gralora_diffusion.command_line import parse
from gralora_diffusion.console import fail, plain_warnings
from gralora_diffusion.options import ConfigError, TrainingError

EXAMPLE = """example:
  gralora train --preset subject-12gb --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \\
      --instance_data_dir photos/my_dog --instance_prompt "a photo of sks dog" --output_dir runs/my_dog
"""


def main(argv: list[str] | None = None) -> None:
    config = parse(__doc__, argv, EXAMPLE)
    plain_warnings()
    try:
        check_paths(config)
    except ConfigError as error:
        fail(str(error))
    if sys.stderr.isatty():
        print("loading torch and diffusers ...", file=sys.stderr, flush=True)
    # torch is imported only after --help, wrong options and wrong paths are dealt with
    from gralora_diffusion.training.dry_run import plan
    from gralora_diffusion.training.signals import Stopped
    from gralora_diffusion.training.train import train

    try:
        if config.dry_run:
            print(plan(config, timed=True))
            return
        run = train(config)
    except ConfigError as error:
        fail(str(error))
    except TrainingError as error:
        fail(str(error), code=1)
    except Stopped as stop:
        print(stop, flush=True)
        return
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    files = "adapter.safetensors; for other tools, comfyui.safetensors and pytorch_lora_weights.safetensors"
    images = "" if config.skip_final_inference else f" and {run}/before_after.png"
    print(f"done: {run} holds the adapter ({files}); look at {run}/report.html{images}")
