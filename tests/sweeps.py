"""Finished runs of made-up sweeps, for the tests of reports."""

from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS

PAIRED = Score(METRICS["paired"], "X")
SUBJECT = Score(METRICS["subject"], "X")
COPY = Score(METRICS["copy"], "X")
DRIFT = Score(METRICS["drift"], "X")


def at(score: Score, strength: float) -> Score:
    return Score(score.metric, score.encoder, strength)


def finished(method, lr, seed, value, part="validation", rank=4, k=None, **more) -> dict:
    """A run with this score, and a held-out loss that falls as it rises."""
    run = dict(method=method, rank=rank, size=rank, k=k, lr=lr, seed=seed, steps=3, part=part, setting="s")
    return dict(
        run=run | more,
        name=f"{method}-{seed}",
        scores={PAIRED: [value - 0.1, value + 0.1], HELD_OUT_LOSS: [1 - value]},
        parameters=1000 * rank,
        seconds_per_step=0.1,
        peak_memory=2**20,
        file_bytes=4000,
        losses=[1.0, 0.5, value],
    )


def failed(method, lr, seed, part="validation", rank=4, **more) -> dict:
    run = finished(method, lr, seed, 0, part, rank, **more)["run"]
    return dict(run=run, name=f"{method}-{seed}", parameters=7, failed="the loss of step 2 is not finite")


def two_seeds(method, rates, part="validation", k=None, step=0.0) -> list[dict]:
    """Runs of seeds 0 and 1 at {rate: the score of seed 0}; seed 1 scores `step` more."""
    done = []
    for lr, value in rates.items():
        done += [finished(method, lr, seed, value + step * seed, part, k=k) for seed in (0, 1)]
    return done


DONE = [
    *two_seeds("lora", {1e-3: 0.5, 1e-2: 0.6}, step=0.01),
    *two_seeds("gralora", {1e-3: 0.8, 1e-2: 0.4}, k=2, step=0.02),
    *two_seeds("lora", {1e-3: 0.95, 1e-2: 0.55}, "test"),
    *two_seeds("gralora", {1e-3: 0.7, 1e-2: 0.99}, "test", k=2, step=0.02),
]
