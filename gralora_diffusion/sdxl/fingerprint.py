"""What tells one base from another."""

import hashlib
import json

from gralora_diffusion.adapters.inject import adapters


def fingerprint(unet) -> dict:
    """What tells one base from another: a hash of the UNet's names and shapes, and one weight of each of 64 tensors.

    Adapters are not looked at, and merged ones are seen through.  Compare with same_base(): the weights differ a little by dtype.
    """
    if hasattr(unet, "base_fingerprint"):  # taken before the base was quantised
        return unet.base_fingerprint
    layers = adapters(unet)
    own = {}
    for name, tensor in unet.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if path.split(".beside.")[0] not in layers or leaf in ("weight", "bias"):
            merged = path in layers and leaf == "weight" and layers[path].unmerged_weight is not None
            own[name] = layers[path].unmerged_weight if merged else tensor
    names = hashlib.sha256(
        json.dumps([(name, list(t.shape)) for name, t in own.items()]).encode()
    ).hexdigest()[:16]
    weights = [t for name, t in own.items() if t.ndim > 1]
    return dict(
        names=names,
        weights=[round(float(t.flatten()[0]), 6) for t in weights[:: max(1, len(weights) // 64)][:64]],
    )


def same_base(first: dict, second: dict) -> bool:
    """Whether two fingerprints are of one base, in whichever dtypes it was loaded."""
    try:
        pairs = list(zip(first["weights"], second["weights"], strict=True))
    except (KeyError, TypeError, ValueError):  # not written by fingerprint(), or of another kind of model
        return False
    return first["names"] == second["names"] and all(
        abs(a - b) <= 0.01 * max(abs(a), abs(b)) + 1e-5 for a, b in pairs
    )
