"""full_size.py [--gib FLOAT] [--json FILE] [--files] [--where] FLAGS: `gralora train FLAGS` at SDXL's size.

A line for each phase and each step.  FLAGS beside these are those of `gralora train`; what they leave open is
short: two steps, two denoising steps, files in a temporary folder.
--files: write checkpoints and exports, which takes minutes.
--where: list the lines of Python that wait for the device in the last step.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path

import card

if __name__ == "__main__":
    card.start()

import hollow
import phases
import stand_ins
import torch

from gralora_diffusion import console
from gralora_diffusion.cli import train

SHORT = {  # flags where FLAGS has none
    "--max_train_steps": "2",
    "--num_inference_steps": "2",
    "--instance_prompt": "a photo of sks robot",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--where", action="store_true")
    own, flags = parser.parse_known_args()
    base = hollow.install()
    stand_ins.color_images()
    recorder = phases.Recorder(where=own.where)
    recorder.install(files=own.files)
    found = run(flags, base, recorder)
    for line in phases.sites_text(recorder.sites):
        print(line)
    if own.json:
        own.json.write_text(json.dumps(found, indent=1))
    sys.exit(found["code"])


def run(flags: list[str], base: str, recorder: phases.Recorder) -> dict:
    """`gralora train` with these flags on the hollow base: exit code, forecast, images by step, phases."""
    with tempfile.TemporaryDirectory(prefix="no-gpu-") as folder:
        output = Path(folder, "run")
        places = {
            "--pretrained_model_name_or_path": base,
            "--output_dir": str(output),
            "--latent_cache_dir": str(Path(folder, "cache")),
        }
        words = list(flags)
        for flag, value in (places | SHORT).items():
            words += [] if flag in flags else [flag, value]
        recorder.lines.clear()
        code = exit_code(words)
        given = flags[flags.index("--output_dir") + 1] if "--output_dir" in flags else output
        status = Path(given) / "status.json"
        facts = json.loads(status.read_text()) if status.is_file() else {}
        images = {path.name: len(list(path.glob("*.png"))) for path in Path(given, "samples").glob("step-*")}
    forget_run()
    return dict(
        flags=flags,
        code=code,
        state=facts.get("state"),
        message=facts.get("message"),
        forecast_gib=facts.get("forecast", {}).get("memory_mb", 0) * 1e6 / card.GIB,
        actual_gib=facts.get("actual", {}).get("memory_mb", 0) * 1e6 / card.GIB,
        images=images,
        phases=list(recorder.lines),
        kernels=dict(recorder.kernels),
        sites=dict(recorder.sites),
    )


def exit_code(flags: list[str]) -> int:
    """What `gralora train` would exit with."""
    console.set_program("gralora train")
    console.quiet_libraries()
    console.plain_warnings()
    try:
        train.main(flags)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def forget_run() -> None:
    """Let the next run of this process choose its precision, and start on an empty card."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
