"""Adafactor, arXiv 1804.04235, for many equally shaped matrices at once."""

import torch

EPSILON = 1e-30  # added to squared gradients
CLIP = 1.0  # the largest root mean square of an update before the learning rate
DECAY = -0.8  # beta2 of step t is 1 - t^DECAY


class Adafactor(torch.optim.Optimizer):
    """Adafactor (algorithms 4 and 5) with a given learning rate, without momentum or relative step sizes.

    Each parameter is a stack [n, *shape] of n tensors, which are updated as if each were one alone: second
    moments are factored over the last two dimensions of shape, where it has two. Equal to
    transformers.Adafactor(scale_parameter=False, relative_step=False) on the n tensors.
    """

    def __init__(self, groups: list[dict], lr: float, weight_decay: float = 0.0):
        super().__init__(groups, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            stacks = [p for p in group["params"] if p.grad is not None]
            if stacks:
                self.update(group, stacks)

    def update(self, group: dict, stacks: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in stacks]
        group["step"] = group.get("step", 0) + 1
        beta2 = 1 - group["step"] ** DECAY
        squares = torch._foreach_mul(gradients, gradients)
        torch._foreach_add_(squares, EPSILON)
        means, moments = [], []
        for p, square in zip(stacks, squares, strict=True):
            for name, mean in second_moments(square).items():
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(mean)
                means.append(mean)
                moments.append(self.state[p][name])
        torch._foreach_lerp_(moments, means, 1 - beta2)
        updates = torch._foreach_mul(gradients, self.scales(stacks))
        roots = [norm_of_each(update) for update in updates]
        torch._foreach_div_(roots, [CLIP * update[0].numel() ** 0.5 for update in updates])
        torch._foreach_clamp_min_(roots, 1.0)
        torch._foreach_div_(updates, roots)
        torch._foreach_mul_(stacks, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(stacks, updates, alpha=-group["lr"])

    def scales(self, stacks: list[torch.Tensor]) -> list[torch.Tensor]:
        """1 / sqrt(second moment) of each number."""
        states = [self.state[p] for p in stacks]
        factored = [state for state in states if "rows" in state]
        rows = [state["rows"] for state in factored]
        shares = iter(())
        if rows:
            relative = torch._foreach_div(rows, [row.mean(-1, keepdim=True) for row in rows])
            columns = [state["columns"] for state in factored]
            inverse = torch._foreach_rsqrt([*relative, *columns])
            shares = zip(inverse[: len(rows)], inverse[len(rows) :], strict=True)
        scales = []
        for state in states:
            if "rows" in state:
                row, column = next(shares)
                scales.append(row.unsqueeze(-1) * column.unsqueeze(-2))
            else:
                scales.append(state["squares"].rsqrt())
        return scales


def second_moments(square: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of squared gradients [n, *shape]: of matrices the means of rows and columns."""
    if square.ndim < 3:
        return dict(squares=square)
    return dict(rows=square.mean(-1), columns=square.mean(-2))


def norm_of_each(update: torch.Tensor) -> torch.Tensor:
    """[n, *shape] -> [n, 1, ...]"""
    if update.ndim == 1:
        return update.abs()
    return torch.linalg.vector_norm(update, dim=tuple(range(1, update.ndim)), keepdim=True)
