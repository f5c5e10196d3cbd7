"""What metrics compute from unit vectors: cosines, diversity, precision in a gallery, and copies."""

import torch


def rowwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosines of unit vectors [n, d], row by row, in float64: [n]."""
    return (a.double() * b.double()).sum(1)


def similarities(generated: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """DreamBooth's pairing: each generated image's mean cosine with all images of the subject: [n]."""
    return (generated.double() @ references.double().T).mean(1)


def diversity(features: torch.Tensor, groups: list[str]) -> tuple[list[str], torch.Tensor]:
    """The groups of at least two images, and the mean of 1 - cosine over all pairs within each."""
    names, found = groups_of(features, groups)
    values = []
    for members in found:
        first, second = torch.triu_indices(len(members), len(members), 1)
        values.append((1 - rowwise(members[first], members[second])).mean())
    return names, torch.stack(values) if values else torch.zeros(0)


def groups_of(features: torch.Tensor, groups: list[str]) -> tuple[list[str], list[torch.Tensor]]:
    """The groups of at least two images, and the vectors [n, d] of each."""
    names, found = [], []
    for name in dict.fromkeys(groups):
        members = features[[group == name for group in groups]]
        if len(members) > 1:
            names.append(name)
            found.append(members)
    return names, found


def vendi(features: torch.Tensor) -> float:
    """The Vendi score (arXiv 2210.02410, eq. 1) of unit vectors [n, d] with the cosine as kernel.

    exp of the entropy of the eigenvalues of the kernel's matrix / n: the effective number of images.
    """
    kernel = features.double() @ features.double().T
    eigenvalues = torch.linalg.eigvalsh(kernel / len(kernel)).clamp_min(0)
    return float(torch.special.entr(eigenvalues).sum().exp())


def average_precision(
    generated: torch.Tensor, references: torch.Tensor, lookalikes: torch.Tensor
) -> torch.Tensor:
    """Of each generated image as a query in a gallery of references and look-alikes: [n].

    The mean, over the references, of the share of references among the images that are no farther; of equal
    cosines, the look-alike's counts as nearer.
    """
    hits = generated.double() @ references.double().T  # [n, m]
    others = generated.double() @ lookalikes.double().T
    before = (hits[:, None] >= hits[:, :, None]).sum(2)  # references no farther than each, itself among them
    wrong = (others[:, None] >= hits[:, :, None]).sum(2)
    return (before.double() / (before + wrong)).mean(1)


def nearest(
    generated: torch.Tensor, references: torch.Tensor
) -> tuple[torch.Tensor, list[int], float | None]:
    """(cosine with the nearest reference [n], its index [n], the greatest cosine of two references).

    An image nearer to a reference than any two references are to each other is a copy.
    """
    values, index = (generated.double() @ references.double().T).max(1)
    if len(references) == 1:
        return values, index.tolist(), None
    among = references.double() @ references.double().T
    return values, index.tolist(), among.fill_diagonal_(-1).max().item()
