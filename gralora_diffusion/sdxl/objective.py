"""What a base or an adapter was trained to predict, and how the files of each tool say so.

An objective is dict(prediction_type=..., rescale_betas_zero_snr=...) in diffusers' words; {} is not known.
That of a rectified flow may have flow_shift too, the shift of its sampling.
"""

import json
from pathlib import Path

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import FLOW, MOST_SHIFT, flow_objective, is_flow

V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"  # empty tensors in checkpoints, as ComfyUI and Forge read
TYPES = dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "vpred"), "v_prediction")
TYPES |= dict.fromkeys(("epsilon", "eps"), "epsilon")
FLOWS = ("flow", "flow_matching", "flow-matching", "rectified_flow", "rectified-flow", "rf")
TYPES |= dict.fromkeys(FLOWS, FLOW)
SHIFT = "ss_discrete_flow_shift"  # as sd-scripts call it
YES = ("true", "1")


def objective_of_checkpoint(names: set[str], metadata: dict[str, str]) -> dict:
    """Of a single file, by the names of its tensors, or else by its header; {} where neither says it."""
    if V_PREDICTION in names:
        return dict(prediction_type="v_prediction", rescale_betas_zero_snr=ZERO_SNR in names)
    return objective_of_header(metadata)


def objective_of_header(metadata: dict[str, str]) -> dict:
    """Of modelspec.prediction_type, or of kohya's ss_v_parameterization and ss_zero_terminal_snr."""
    named = metadata.get("modelspec.prediction_type", "").strip().lower()
    kind = TYPES.get(named)
    if kind is None and "ss_v_parameterization" in metadata:
        kind = "v_prediction" if is_yes(metadata["ss_v_parameterization"]) else "epsilon"
    if kind is None:
        return {}
    if kind == FLOW:
        return flow_objective(shift_in(metadata.get(SHIFT, "")))
    zero_snr = is_yes(metadata.get("ss_zero_terminal_snr", "")) or is_yes(metadata.get("ztsnr", ""))
    return dict(prediction_type=kind, rescale_betas_zero_snr=zero_snr)


def objective_of_folder(folder: Path) -> dict:
    """Of the scheduler of a folder in diffusers layout."""
    try:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    except (OSError, ValueError):
        return {}
    return objective_of_scheduler(config)


def objective_of_scheduler(config) -> dict:
    """Of a scheduler's config, a mapping."""
    if is_flow(config):
        return flow_objective(config.get("shift", 1.0))
    kind = config.get("prediction_type", "epsilon")
    return dict(prediction_type=kind, rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr")))


def common_objective(objectives: list[dict | None]) -> dict:
    """What several adapters were trained to predict; {} where none says it.

    Raises ConfigError where they differ.
    """
    known = [objective for objective in objectives if objective]
    for objective in known:
        if objective != known[0]:
            problem = f"one is for {objective_text(known[0])}, another for {objective_text(objective)}"
            raise ConfigError(f"the adapters cannot be used together: {problem}")
    return known[0] if known else {}


def header_of(objective: dict) -> dict[str, str]:
    """The lines of a header that say it: modelspec's and kohya's."""
    if not objective:
        return {}
    is_v = objective["prediction_type"] == "v_prediction"
    shift = {SHIFT: f"{objective['flow_shift']:g}"} if "flow_shift" in objective else {}
    return shift | {
        "modelspec.prediction_type": "v" if is_v else objective["prediction_type"],
        "ss_v_parameterization": str(is_v),
        "ss_zero_terminal_snr": str(objective["rescale_betas_zero_snr"]),
    }


def marks_of(objective: dict) -> list[str]:
    """The names of the empty tensors that mark a checkpoint."""
    if objective.get("prediction_type") != "v_prediction":
        return []
    return [V_PREDICTION, ZERO_SNR] if objective["rescale_betas_zero_snr"] else [V_PREDICTION]


def objective_text(objective: dict) -> str:
    """For people."""
    if not objective:
        return "not named"
    if "flow_shift" in objective:
        return f"flow with shift {objective['flow_shift']:g}"
    zero_snr = " with zero terminal SNR" if objective["rescale_betas_zero_snr"] else ""
    return f"{objective['prediction_type']}{zero_snr}"


def shift_in(text: str) -> float | None:
    """The shift that a header names; None where it is no number of a shift."""
    try:
        shift = float(text)
    except ValueError:
        return None
    return shift if 0 < shift <= MOST_SHIFT else None


def is_yes(text: str) -> bool:
    return text.strip().lower() in YES
