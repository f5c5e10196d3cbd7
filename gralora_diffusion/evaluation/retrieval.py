"""How well an encoder distinguishes subjects."""

import torch

from gralora_diffusion.evaluation.statistics import rate_interval
from gralora_diffusion.options import ConfigError


def precision_of_random_order(subject: int, others: int) -> float:
    """The expected average precision of a random order of so many images of the subject among others."""
    n = subject + others
    harmonic = sum(1 / place for place in range(1, n + 1))
    if n == 1:
        return 1.0
    return ((subject - 1) / (n - 1) * (n - harmonic) + harmonic) / n


def subject_retrieval(features: torch.Tensor, subjects: list[str]) -> dict:
    """Rates over the images, from unit vectors [n, d] and the subject of each.

    nearest_is_the_same_subject: the rate of images whose nearest other image shows their subject, with its 95
    % interval.  triples_in_order: the rate of triples (image, same subject, other subject) in the right
    order.
    within, between: mean cosines.  Raises ConfigError when there are no such triples.
    """
    cosines = features.double() @ features.double().T
    numbers = {subject: number for number, subject in enumerate(dict.fromkeys(subjects))}
    ids = torch.tensor([numbers[subject] for subject in subjects])
    same = ids[:, None] == ids
    other = ~same
    same.fill_diagonal_(False)
    nearest = cosines.clone().fill_diagonal_(-2).argmax(1, keepdim=True)
    hits = same.gather(1, nearest).double()
    rates = []
    for row, same_subject, other_subject in zip(cosines, same, other, strict=True):
        if same_subject.any() and other_subject.any():
            in_order = row[same_subject][:, None] > row[other_subject]
            rates.append(in_order.double().mean())
    if not rates:
        raise ConfigError("this needs at least two subjects, and at least two images of one of them")
    return dict(
        images=len(subjects),
        subjects=len(set(subjects)),
        nearest_is_the_same_subject=hits.mean().item(),
        nearest_is_the_same_subject_interval=rate_interval(int(hits.sum()), len(subjects)),
        triples_in_order=torch.stack(rates).mean().item(),
        within=cosines[same].mean().item(),
        between=cosines[other].mean().item(),
    )
