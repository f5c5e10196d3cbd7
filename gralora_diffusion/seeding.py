"""Random generators by key, so that no draw depends on what was drawn before it."""

import torch


def generator(*key: int) -> torch.Generator:
    """A CPU generator for this key, for instance (seed, step, rank); it depends on no earlier draw."""
    state = 0
    for part in key:  # SplitMix64's finalizer, so that near keys give far seeds
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state & (2**63 - 1))
