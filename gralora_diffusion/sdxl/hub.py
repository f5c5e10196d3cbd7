"""Whether the Hugging Face hub can be reached: found out once and fast, instead of by minutes of retries."""

import functools
import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from gralora_diffusion.console import note
from gralora_diffusion.options import ConfigError

PATIENCE = 8  # seconds for one answer
UNREACHABLE = "the Hugging Face hub could not be reached"
NOT_HERE = "is neither a local folder nor in the download cache"


def hub_options(path: str, revision: str | None = None, cache_dir: str | None = None) -> dict:
    """Keywords of from_pretrained() for a base: {}, or where the hub is away those for its downloaded files.

    Raises ConfigError where the hub is away and nothing of the base was downloaded.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(path).exists() or constants.HF_HUB_OFFLINE:
        return {}
    where = dict(revision=revision, cache_dir=cache_dir)
    try:
        found = try_to_load_from_cache(path, "model_index.json", **where)
    except ValueError:  # no hub id, which from_pretrained() explains
        return {}
    announce(path)
    if is_reachable():
        return {}
    if not isinstance(found, str):
        raise ConfigError(f"no SDXL base can be loaded from {path}: {UNREACHABLE}, and the base {NOT_HERE}")
    note(f"{UNREACHABLE}: {path} is loaded from the download cache")
    return dict(local_files_only=True)


def is_reachable() -> bool:
    """Whether the hub, or what HF_ENDPOINT names, answers, be it with an error."""
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # certificates are the hub's library's own matter
    except (OSError, http.client.HTTPException):
        return False


@functools.cache
def announce(path: str) -> None:
    """The first sign of a base that may have to be downloaded."""
    note(f"looking for {path} on the Hugging Face hub")
