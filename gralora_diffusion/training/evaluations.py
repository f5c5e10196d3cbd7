"""The evaluations of a run: loss on held-out images, scores of sample images, and the best step's adapter."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.best import best_of, best_text, is_exhausted, score_of
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.preview_scores import PreviewScores, encoder_names
from gralora_diffusion.training.run_folder import EVALUATIONS, Run
from gralora_diffusion.training.setup import TrainingSetup, validation_due
from gralora_diffusion.training.validation_images import Previews
from gralora_diffusion.training.validation_loss import ValidationLoss


def is_evaluated(setup: TrainingSetup) -> bool:
    """Whether this run has evaluations."""
    return bool(setup.held_out or encoder_names(setup.config))


class Evaluations:
    """What is measured every --validation_steps, at step 0 and at the end.

    history has a line for each, as evaluations.jsonl has. With --keep_best, best holds the values of all
    factors after the best step, on the CPU. Both are part of each checkpoint. The models must be as they are
    sampled from: see averaged().
    """

    def __init__(
        self,
        setup: TrainingSetup,
        run: Run | None,
        optimization: Optimization,
        loss: ValidationLoss | None,
        previews: Previews | None,
    ):
        """run: None in all processes but the first."""
        self.setup, self.run, self.loss, self.previews = setup, run, loss, previews
        self.values = optimization.factors.values
        state = setup.state.get("evaluations") or dict(history=[], best=None)
        self.history: list[dict] = list(state["history"])
        self.best: torch.Tensor | None = state["best"]
        self.seconds = 0.0  # that the last evaluation took
        self.is_scored = bool(encoder_names(setup.config))
        self.scores = None
        if run:
            if self.is_scored:
                self.scores = PreviewScores(setup.encoders, setup.images, setup.config)
            lines = "".join(json.dumps(line) + "\n" for line in self.history)
            write_text(setup.path / EVALUATIONS, lines)
            if self.best is None:
                checkpoints.discard_best(setup.path)
            else:
                with self.best_in_place() as step:
                    self.write_best(step)

    def due(self, step: int) -> bool:
        return step == self.setup.steps or validation_due(self.setup, step)

    def has(self, step: int) -> bool:
        return any(line["step"] == step for line in self.history)

    def exhausted(self) -> bool:
        return is_exhausted(self.history, self.setup.config)

    def state(self) -> dict:
        return dict(history=self.history, best=self.best)

    def add(self, step: int) -> None:
        """Evaluate after this step, whose sample images are drawn, and keep its adapter if it is the best."""
        start = time.monotonic()
        config = self.setup.config
        line = dict(step=step)
        if self.loss:
            loss = self.loss.measure()
            line["validation_loss"] = loss if math.isfinite(loss) else None
        if self.is_scored:
            line |= self.scores_of(step)
            base = self.history[0] if self.history else line
            line["score"] = score_of(line, base)
        self.history.append(line)
        if config.keep_best == "score" and step == 0 and line["score"] is None:
            raise TrainingError(
                "the sample images of step 0 could not be scored, which --keep_best score needs"
            )
        if self.run:
            self.log(line)
        if config.keep_best and best_of(self.history, config.keep_best) is line:
            self.best = self.values.to("cpu", copy=True)
            if self.run:
                self.write_best(step)
        self.seconds = time.monotonic() - start

    def scores_of(self, step: int) -> dict:
        """The scores of this step's sample images, the same in all processes; {} with a warning without."""
        accelerator = self.setup.accelerator
        accelerator.wait_for_everyone()  # all images are drawn
        found = {}
        if self.scores:
            try:
                found = self.scores.measure(self.previews.of_step(step))
            except ConfigError as error:
                warnings.warn(f"the sample images of step {step} are not scored: {error}", stacklevel=2)
        if accelerator.num_processes > 1:
            (found,) = broadcast_object_list([found])
        return found

    def log(self, line: dict) -> None:
        """A line in evaluations.jsonl, on the console and in the trackers."""
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        self.setup.accelerator.log(
            {f"evaluation/{name}": value for name, value in numbers.items() if name != "step"},
            step=line["step"],
        )
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items() if name != "step"
        )
        tqdm.write(f"evaluation at step {line['step']}: {shown or 'nothing could be measured'}")
        try:
            with open(self.setup.path / EVALUATIONS, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            problem = f"{EVALUATIONS} cannot be written ({error})"
            raise TrainingError(
                f"{problem}; run the same command to resume from the newest checkpoint"
            ) from None

    def write_best(self, step: int) -> None:
        checkpoints.save_best(self.setup.path, self.setup.adapter(step))

    @contextlib.contextmanager
    def best_in_place(self) -> Iterator[int]:
        """Within it the models hold the best step's adapter; yields that step."""
        held = self.values.detach().clone()
        try:
            yield self.use_best()
        finally:
            with torch.no_grad():
                self.values.copy_(held)

    @torch.no_grad()
    def use_best(self) -> int | None:
        """Put the best step's adapter into the models, and return that step; None where there is none."""
        if self.best is None:
            return None
        self.values.copy_(self.best)
        return best_of(self.history, self.setup.config.keep_best)["step"]

    def text(self) -> str:
        return best_text(self.history, self.setup.config.keep_best)


def evaluations_of(
    setup: TrainingSetup, run: Run | None, optimization: Optimization, held_out, encode, previews
) -> Evaluations | None:
    """Those of this run, with that of step 0; None for a run without.

    held_out: the BatchPlan of the held-out images, or None.
    """
    if not is_evaluated(setup):
        return None
    loss = None
    if held_out:
        how = encode, setup.config, setup.accelerator, setup.dtype
        loss = ValidationLoss(setup.models, setup.pipeline.scheduler, held_out, *how)
    evaluations = Evaluations(setup, run, optimization, loss, previews)
    if setup.start == 0:
        evaluations.add(0)
    return evaluations
