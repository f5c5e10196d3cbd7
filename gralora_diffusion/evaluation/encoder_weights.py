"""Weights of encoders: loaded without stand-ins, and errors that name a way to get them."""

import json
import re
import textwrap
from pathlib import Path

import torch
from torch import nn

from gralora_diffusion.console import counted, note
from gralora_diffusion.options import ConfigError

FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")  # of transformers' loading


def load_exactly(cls, where, **options) -> nn.Module:
    """from_pretrained in fp32.  Raises ValueError for missing, superfluous and misshapen tensors.

    transformers only warns of these.
    """
    model, info = cls.from_pretrained(
        where, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
    )
    wrong = sorted(str(key) for fault in FAULTS for key in info[fault])
    if wrong:
        raise ValueError(
            f"its weights are not those of {cls.__name__}: {counted(len(wrong), 'tensor')} missing, "
            f"unexpected or of the wrong shape, first {wrong[0]}"
        )
    return model


def ask_hub(repo: str, file: str, what: str) -> None:
    """Announce a download of weights that are not in the hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not repo or constants.HF_HUB_OFFLINE:
        return
    if not isinstance(try_to_load_from_cache(repo, file), str):
        note(f"fetching the weights of {what} from {repo} on the Hugging Face hub")


def unavailable(what: str, hub: str, files: str, kind: str, error: Exception) -> str:
    """The message for weights that cannot be downloaded, with two ways to get them."""
    why = re.split("[.:] ", first_line(error))[0]
    return (
        f"the weights of {what} are not on this machine and cannot be fetched ({why}); either run once with "
        f"a network, which caches {hub} from the Hugging Face hub, or copy {files} from {hub} into "
        f"a folder and use --encoder {kind}:FOLDER; images of the embedded base can be scored without "
        "either: --encoder imagenet embedded"
    )


def first_line(error: Exception) -> str:
    """At most 200 characters of an error, cut between words."""
    text = textwrap.shorten(str(error), 200, placeholder="") or type(error).__name__
    return text.rstrip(".:; ")


def files_in(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def read_clip_config(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
