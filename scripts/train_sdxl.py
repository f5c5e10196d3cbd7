"""Personalise SDXL with a GraLoRA or LoRA adapter, from a few pictures.

    accelerate launch scripts/train_sdxl.py --gralora_rank 64

trains on the embedded tiny base and the bundled pictures of a robot.  On SDXL itself:

    accelerate launch scripts/train_sdxl.py --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \\
        --instance_data_dir photos/my_dog --instance_prompt "a photo of sks dog" --output_dir runs/my_dog \\
        --gralora_rank 64 --mixed_precision bf16 --gradient_checkpointing

--dry_run prints the resolved config and the plan: layers, parameters, memory, files, steps, time.
"""

import sys

from gralora_diffusion.command_line import fail, parse, plain_warnings
from gralora_diffusion.config import ConfigError, TrainingError, check_paths


def main():
    config = parse(__doc__)
    plain_warnings()
    try:
        check_paths(config)
    except ConfigError as error:
        fail(str(error))
    if sys.stderr.isatty():
        print("loading torch and diffusers ...", file=sys.stderr, flush=True)
    from gralora_diffusion.interrupts import Stopped
    from gralora_diffusion.planning import plan  # torch only after --help, wrong flags and wrong paths are dealt with
    from gralora_diffusion.training import train

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
        print(f"train_sdxl: {stop}", flush=True)
        return
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    print(f"done: {run} holds the adapter (adapter.safetensors; for other tools, comfyui.safetensors and pytorch_lora_weights.safetensors)", end="")
    print(f"; look at {run}/report.html" + ("" if config.skip_final_inference else f" and {run}/before_after.png"))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # while the libraries load; later on, training takes signals itself
        fail("stopped before the first step; nothing is lost, and the same command begins again", code=130)
