"""SDXL's single-file checkpoints, which hold weights alone: the public configs and CLIP's tokenizer.

Nothing is fetched: the tokenizer's vocabulary is the one that open_clip carries.
"""

import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import FLOW
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.sdxl.objective import objective_of_checkpoint

NOT_SDXL = (
    "is not an SDXL base: it lacks one of the two text encoders or the size conditioning "
    "(SD 1.5, or the refiner?)"
)
SDXL_UNET = dict(  # the public config of stabilityai/stable-diffusion-xl-base-1.0
    sample_size=128,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280),
    layers_per_block=2,
    cross_attention_dim=2048,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)


SDXL_TEXT = dict(vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407)
SDXL_TEXT_ENCODER = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **SDXL_TEXT
)
SDXL_TEXT_ENCODER_2 = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
    **SDXL_TEXT,
)


SDXL_VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=1024,
    scaling_factor=0.13025,
    force_upcast=True,
)


SDXL_SCHEDULER = dict(  # Euler's, as the public base has it
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    timestep_spacing="leading",
    steps_offset=1,
)


SDXL_INDEX = dict(
    _class_name="StableDiffusionXLPipeline",
    force_zeros_for_empty_prompt=True,
    scheduler=["diffusers", "EulerDiscreteScheduler"],
    unet=["diffusers", "UNet2DConditionModel"],
    vae=["diffusers", "AutoencoderKL"],
    text_encoder=["transformers", "CLIPTextModel"],
    text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    tokenizer=["transformers", "CLIPTokenizer"],
    tokenizer_2=["transformers", "CLIPTokenizer"],
    image_encoder=[None, None],
    feature_extractor=[None, None],
)

PARTS = {  # one tensor of each part of an SDXL checkpoint
    "UNet": "model.diffusion_model.label_emb.0.0.weight",
    "first text encoder": "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "second text encoder": "conditioner.embedders.1.model.token_embedding.weight",
}


@contextmanager
def layout_of(file: Path) -> Iterator[Path]:
    """A folder in diffusers layout with what a single-file checkpoint does not hold.

    These are configs, scheduler and tokenizers.
    A file that says it predicts v (with zero terminal SNR or not), or is a flow, gets a scheduler that knows:
    see objective.py.
    Raises ConfigError, before any weight is read, when the file is damaged or not a text-to-image SDXL.
    """
    objective = objective_of_checkpoint(*names_in(file))
    scheduler = SDXL_SCHEDULER | dict(prediction_type=objective.get("prediction_type", "epsilon"))
    index = SDXL_INDEX
    if objective.get("prediction_type") == FLOW:
        kind = "FlowMatchEulerDiscreteScheduler"
        scheduler = dict(_class_name=kind, num_train_timesteps=1000, shift=objective.get("flow_shift", 1.0))
        index = SDXL_INDEX | dict(scheduler=["diffusers", kind])
    if objective.get("rescale_betas_zero_snr"):
        # from the very last timestep on (arXiv 2305.08891)
        scheduler |= dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with tempfile.TemporaryDirectory() as folder:
        configs = {
            "model_index.json": index,
            "unet/config.json": SDXL_UNET,
            "vae/config.json": SDXL_VAE,
            "text_encoder/config.json": SDXL_TEXT_ENCODER,
            "text_encoder_2/config.json": SDXL_TEXT_ENCODER_2,
            "scheduler/scheduler_config.json": scheduler,
        }
        for name, config in configs.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(config))
        for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
            clip_tokenizer(padding).save_pretrained(Path(folder, name))
        yield Path(folder)


def names_in(file: Path) -> tuple[set[str], dict[str, str]]:
    """The names of a checkpoint's tensors, and its header.

    Raises ConfigError if it is not an SDXL whose noise levels are SDXL's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
            metadata = opened.metadata() or {}
            shape = opened.get_slice(PARTS["UNet"]).get_shape() if PARTS["UNet"] in names else None
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} is not a complete .safetensors file: {error}") from None
    if lacking := [part for part, name in PARTS.items() if name not in names]:
        none = "is not an SDXL checkpoint: it holds none of its three models"
        raise ConfigError(f"{file} {NOT_SDXL if len(lacking) < len(PARTS) else none}")
    if shape != [4 * SDXL_UNET["block_out_channels"][0], SDXL_UNET["projection_class_embeddings_input_dim"]]:
        way = "other sizes are read from folders only, which gralora convert --to merged writes"
        raise ConfigError(f"{file} is a checkpoint of a different size from SDXL's; {way}")
    if names & {"edm_mean", "edm_vpred.sigma_max"}:
        problem = "was trained with EDM's noise levels (Playground 2.5?), which are not SDXL's"
        raise ConfigError(f"{file} {problem}: use another base")
    return names, metadata


def clip_tokenizer(padding: str):
    """CLIP's tokenizer (arXiv 2103.00020), 77 tokens.

    padding: `<|endoftext|>` in SDXL's first text encoder, `!` in its second.
    """
    import_libraries()
    from transformers import CLIPTokenizer

    file = Path(find_spec("open_clip").submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines]
    merges = merges[1:48895]  # the first line is a title; OpenAI's vocabulary stops here
    # bytes that stand for themselves; the others come after, from 256 on
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in own] + [chr(256 + i) for i in range(256 - len(own))]
    words = letters + [letter + "</w>" for letter in letters]
    words += map("".join, merges)
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {word: i for i, word in enumerate(words)},
        merges,
        pad_token=padding,
        model_max_length=SDXL_TEXT["max_position_embeddings"],
    )
