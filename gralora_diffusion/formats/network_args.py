"""Options of kohya's trainers, in the header ss_network_args, that change what the tensors of a file mean."""

from pathlib import Path

from gralora_diffusion.formats.adapter_state import Factors
from gralora_diffusion.formats.safetensors_files import parsed
from gralora_diffusion.options import ConfigError

HEADER = "ss_network_args"
NONE = ("", "none", "null", "false", "0")
WHOLE_KRON = {"lokr_w1", "lokr_w2"}
OWN_SCALE = ("cdka_alpha", "use_cdka_scale")  # of the networks krona and cdka, by their versions


def check_network_args(path: Path, metadata: dict[str, str], layers: list[Factors]) -> None:
    """Raises ConfigError for options with which the tensors alone do not give the change of the weights."""
    leaves = set().union(*layers)
    if "lambda_layer" in leaves:
        check_start(path, options_of(path, metadata))
    if leaves >= WHOLE_KRON:
        check_scale(path, options_of(path, metadata))


def options_of(path: Path, metadata: dict[str, str]) -> dict:
    return parsed(metadata.get(HEADER, "{}"), f"{path}: its header {HEADER}")


def check_start(path: Path, options: dict) -> None:
    """Refuse a T-LoRA of LyCORIS that began with other matrices than LyCORIS makes again."""
    of_base = str(options.get("use_data_init", True)).lower() not in ("false", "0")
    if not of_base or options.get("sig_type", "principal") != "principal":
        problem = "is a T-LoRA that did not begin with the largest singular vectors of the base"
        raise ConfigError(f"{path} {problem}: what it began with is not in the file; merge it in LyCORIS")


def check_scale(path: Path, options: dict) -> None:
    """Refuse a KronA or CDKA with a scale of its own.

    Its first versions kept the scale out of the tensors, later ones multiply it in; files do not say which.
    """
    given = [name for name in OWN_SCALE if str(options.get(name, "")).lower() not in NONE]
    if given:
        problem = f"was trained with {given[0]}, a scale that is in the tensors of some versions only"
        way = "merge it into its base in its trainer, and make an adapter of that with `gralora extract`"
        raise ConfigError(f"{path} {problem}: {way}")
