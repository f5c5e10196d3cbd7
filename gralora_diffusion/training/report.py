"""report.html: one page for a run, without network: sample images, losses, evaluations, options and files."""

import json
import re
from pathlib import Path

from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.config.choices import EMBEDDED_RESOLUTION, SDXL_RESOLUTION
from gralora_diffusion.console import counted, duration
from gralora_diffusion.devices import best_device, best_precision
from gralora_diffusion.files import render, resolved, write_text
from gralora_diffusion.formats.preview import jpeg_of_image
from gralora_diffusion.options import ConfigError, from_dict, options_of, to_dict
from gralora_diffusion.sdxl.flow import FLOW
from gralora_diffusion.training.memory import disk_used
from gralora_diffusion.training.report_charts import (
    best_evaluation,
    evaluation_charts,
    evaluation_rows,
    loss_chart,
)
from gralora_diffusion.training.report_samples import prompts_of_samples, sample_rows
from gralora_diffusion.training.run_folder import (
    public_options,
    read_evaluations,
    read_metrics,
    recorded_status,
    steps_seconds,
)
from gralora_diffusion.training.run_time import time_text
from gralora_diffusion.training.validation_images import label_of_start

REPORT = "report.html"
TRAINING_IMAGE = 256  # pixels of the longer side of a training image
TRAINING_IMAGES = re.compile(r'src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)" alt="training image \d+"')
COSTS = {  # of a RunCost
    "memory_mb": "memory in MB",
    "reserved_mb": "memory reserved on the GPU in MB",
    "disk_mb": "disk in MB",
}
NOT_CHOSEN = ("output_dir",)  # the title names it


def write_report(run: Path, training_images: list[Image.Image] = ()) -> None:
    """Write run/report.html from what the folder holds, and some training images."""
    write_page(run, [jpeg_of_image(image, TRAINING_IMAGE) for image in training_images])


def write_report_again(run: Path) -> None:
    """Write the report of a run whose folder and files have other names now, with its own training images."""
    write_page(run, TRAINING_IMAGES.findall((run / REPORT).read_text()))


def write_page(run: Path, training_images: list[str]) -> None:
    """training_images: JPEGs in base64."""
    config = json.loads((run / "config.json").read_text())
    metrics, evaluations = read_metrics(run), read_evaluations(run)
    status = recorded_status(run)
    best = best_evaluation(evaluations, config.get("keep_best"))
    changed, others = options_apart(config)
    options = public_options(config["adapter"] | config)
    prompts, first = prompts_of_samples(config), label_of_start(config.get("start_from"))
    rows, left_out = sample_rows(run, prompts, best["step"] if best else None, first)
    page = render(
        "training/templates/report.html",
        title=resolved(run).name,
        summary=summary(options, metrics, status.get("actual") or {}),
        rows=rows,
        left_out=f"{left_out}: see the folder samples" if left_out else "",
        training_images=training_images,
        curve=loss_chart(metrics),
        charts=evaluation_charts(evaluations, best),
        evaluations=evaluation_rows(evaluations, best) if evaluations else None,
        changed=changed,
        others=others,
        files=file_sizes(run),
        forecast=forecast_and_actual(status),
    )
    write_text(run / REPORT, page)


def summary(options: dict, metrics: list[dict], actual: dict) -> str:
    """What was trained, and how long it took; actual: what the run took, in status.json."""
    base = options["pretrained_model_name_or_path"] or "the embedded base"
    adapter = f"{options['method']} of rank {options['rank']} on {base}"
    steps = counted(len(metrics), "step")
    if "seconds" not in actual:
        return f"{adapter}: {steps}, which took {duration(steps_seconds(metrics))}."
    return f"{adapter}: {steps}. The run took {time_text(actual['seconds'], metrics)}."


def options_apart(config: dict) -> tuple[list[dict], list[dict]]:
    """(options that differ from the defaults, all others), each with its label and its value as text.

    config: config.json, with what the run took from the base. The defaults are those of the same base.
    """
    values = {name: value for name, value in config.items() if name != "adapter"} | config["adapter"]
    values = public_options(values)
    defaults = default_values(config.get("pretrained_model_name_or_path"))
    known = options_of(TrainConfig)
    apart = ([], [])
    for name, value in values.items():
        label = known[name].label if name in known else name
        is_default = value is None or name in NOT_CHOSEN or value in taken_values(name, values, defaults)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        apart[is_default].append(dict(name=name, label=label, value=text))
    return apart


def taken_values(name: str, values: dict, defaults: dict) -> list:
    """What config.json records of an option that was not given, on this machine and with these options."""
    if name == "mixed_precision":
        return [best_precision(best_device())]
    if name == "resolution":
        return [EMBEDDED_RESOLUTION if values["pretrained_model_name_or_path"] is None else SDXL_RESOLUTION]
    if name == "prediction_type":
        return ["epsilon"]
    if name == "flow_shift" and values["prediction_type"] != FLOW:
        return [values[name]]
    if name == "text_encoder_lr":
        return [values["learning_rate"]]
    if name == "text_encoder_2_lr":
        return [values["learning_rate"], values["text_encoder_lr"]]
    return [defaults[name]] if name in defaults else []


def default_values(base: str | None) -> dict:
    """{option: what it is where nothing is given, on this base}."""
    try:
        config = from_dict(TrainConfig, dict(pretrained_model_name_or_path=base)).resolved()
    except ConfigError:
        config = TrainConfig().resolved()
    values = to_dict(config)
    return public_options(values.pop("adapter") | values)


def file_sizes(run: Path) -> dict[str, str]:
    """{file or folder: its size in words}, without the report itself."""
    sizes = {}
    for path in sorted(run.iterdir()):
        if not path.name.startswith(".") and path.name != REPORT:
            size = path.stat().st_size if path.is_file() else disk_used(path)
            sizes[path.name] = f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    return sizes


def forecast_and_actual(status: dict) -> list[tuple[str, str, str]]:
    """(quantity, forecast, actual), once both are known."""
    expected, actual = status.get("forecast"), status.get("actual")
    if not expected or not actual:
        return []
    rows = [("time", duration(expected["seconds"]), duration(actual["seconds"]))]
    for name, label in COSTS.items():
        if name in actual:
            rows.append((label, f"{expected[name]:,.1f}" if name in expected else "", f"{actual[name]:,.1f}"))
    return rows
