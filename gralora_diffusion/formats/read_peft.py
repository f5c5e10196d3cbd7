"""PEFT's folders of adapters: LoRA (also DoRA), LoHa, LoKr, OFT, BOFT, (IA)3, VeRA and GraLoRA."""

from pathlib import Path

from gralora_diffusion.console import note
from gralora_diffusion.formats.adapter_state import Adapter, Factors, describe, sizes_of
from gralora_diffusion.formats.check import check_factors
from gralora_diffusion.formats.layer_parts import LARGEST_ALPHA
from gralora_diffusion.formats.peft_deltas import PEFT_DELTAS, seeded
from gralora_diffusion.formats.read_foreign import Found, assembled, facts_of, grouped
from gralora_diffusion.formats.safetensors_files import parsed, read_safetensors
from gralora_diffusion.options import ConfigError

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
VERA = {"vera_lambda_b", "vera_lambda_d"}
KINDS = ("LORA", "LOHA", "LOKR", *PEFT_DELTAS, "GRALORA")


def read_peft(folders: list[Path]) -> Adapter:
    """The adapter in the folders of one or several models.

    PEFT's r is the rank of GraLoRA's blocks, hybrid_r beside it; the paper's code counts hybrid_r in: the
    tensors show which.  Raises ConfigError for other kinds of adapters, and where the folders differ.
    """
    layers, alphas, configs, facts = {}, {}, {}, {}
    found: Found = {}
    for folder in folders:
        config = parsed((folder / PEFT_CONFIG).read_text(errors="replace"), str(folder / PEFT_CONFIG))
        kind = config.get("peft_type")
        if kind not in KINDS:
            way = "merge it in PEFT, and make an adapter from the merged model with `gralora extract`"
            problem = f"{folder} holds a PEFT adapter of type {kind}; supported types: {', '.join(KINDS)}"
            raise ConfigError(f"{problem}: {way}")
        metadata, own = leaves_in(folder, config)
        facts |= facts_of(folder / PEFT_TENSORS, metadata)
        component = next(iter(own))[0]
        if component in configs:
            raise ConfigError(f"{folder} is a second folder for {component}; give one of the two")
        configs[component] = config
        if kind != "GRALORA":
            found |= own
            continue
        for (_, module_path), leaves in own.items():
            where = f"{folder}: {module_path}"
            check_factors(leaves, "gralora", where)
            alphas[component] = gralora_alpha(config, leaves, where)
            layers.setdefault(component, {})[module_path] = leaves
    if len(set(alphas.values())) > 1 or (alphas and set(alphas) != set(configs)):
        problem = "its models differ in alpha or in the kind of adapter"
        raise ConfigError(f"{folders[0].parent}: {problem}; convert their folders one by one")
    if alphas:
        return Adapter(describe(layers, next(iter(alphas.values()))), layers, facts)
    where = str(folders[0] if len(folders) == 1 else folders[0].parent)
    return assembled(found, configs.get, where, facts)


def leaves_in(folder: Path, config: dict) -> tuple[dict[str, str], Found]:
    """(header, the tensors by layer) of one model's folder."""
    file = folder / PEFT_TENSORS
    if not file.is_file():
        danger = "a .bin file is a pickle, which can run code when it is read"
        raise ConfigError(f"{folder} holds no {PEFT_TENSORS} ({danger})")
    metadata, tensors = read_safetensors(file)
    found = grouped(file, tensors)
    if not found:
        raise ConfigError(f"{file} holds no layers")
    if config.get("peft_type") == "VERA":
        give_projections(found, config, folder)
    return metadata, found


def give_projections(found: Found, config: dict, folder: Path) -> None:
    """Give the layers of a VeRA that is stored without its projections those that its seed makes again."""
    if any("vera_A" in leaves or not VERA.issubset(leaves) for leaves in found.values()):
        return  # stored, or no whole VeRA, which is refused by layer
    try:
        if config.get("save_projection", True) is not False:
            raise ValueError("its config says that they are saved")
        projections = seeded(found, config)
    except ValueError as error:
        problem = f"is a VeRA without its projections, and {error}"
        raise ConfigError(f"{folder} {problem}: save it in PEFT with save_projection=True") from None
    for leaves in found.values():
        leaves["projections"] = projections
    note(f"{folder}: this VeRA's projections are not stored; they are made again from its seed, as in PEFT")


def gralora_alpha(config: dict, factors: Factors, where: str) -> float:
    """alpha, after the config's sizes were compared with the tensors'."""
    r, hybrid, k, alpha = (config.get(name) for name in ("r", "hybrid_r", "gralora_k", "alpha"))
    sizes = sizes_of(factors)
    blocks_rank = sizes.rank - sizes.hybrid_rank
    if (hybrid or 0) != sizes.hybrid_rank or k != sizes.k or r not in (blocks_rank, sizes.rank):
        recorded = f"r {r}, gralora_k {k}, hybrid_r {hybrid}"
        found = f"{blocks_rank}, {sizes.k}, {sizes.hybrid_rank}"
        raise ConfigError(f"{where}: {PEFT_CONFIG} says {recorded}, and the tensors have {found}")
    if not isinstance(alpha, int | float) or not 0 < alpha < LARGEST_ALPHA:
        raise ConfigError(f"{where}: {PEFT_CONFIG} says alpha {alpha!r}; it must be a positive number")
    return float(alpha)
