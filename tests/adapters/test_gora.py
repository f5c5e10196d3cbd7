"""GoRA's formulas on planted problems: everything that can be computed by hand is."""

import itertools
import math

import pytest
import torch

from gralora_diffusion.adapters.gora import (
    as_gralora,
    by_block,
    effective_rank,
    energies,
    gradient_factors,
    importance,
    least_squares,
    project,
    ralora_k,
    whitened,
)
from gralora_diffusion.adapters.gralora import choose_k
from gralora_diffusion.adapters.linear import GraLoRALinear, LoRALinear
from gralora_diffusion.adapters.rank_budget import allocate_ranks, exact_ranks, greedy_ranks

SHAPES = {"q": (640, 640), "k": (640, 2048), "v": (1280, 1280), "o": (1280, 2048), "ff": (10240, 1280)}
IMPORTANCES = {"q": 3.0, "k": 1.0, "v": 0.5, "o": 7.0, "ff": 0.2}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def parameters(ranks, shapes):
    return sum((m + n) * ranks[name] for name, (m, n) in shapes.items())


def test_importance_by_hand():
    W, G = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0], [-1.0, 5.0]])
    assert importance(W, G) == (2 + 2 + 3 + 0) / 4


def test_the_papers_ranks_by_hand():
    """b = sum sqrt(M + N) r_ref; r = clip(round(b a / sqrt(M + N)))."""
    shapes, importances = {"a": (9, 16), "b": (18, 18), "c": (50, 50)}, {"a": 2.0, "b": 1.0, "c": 5.0}
    budget = (5 + 6 + 10) * 6  # 126
    wanted = {"a": budget * 2 / 8 / 5, "b": budget / 8 / 6, "c": budget * 5 / 8 / 10}  # 6.3, 2.625, 7.875
    assert wanted == {"a": 6.3, "b": 2.625, "c": 7.875}
    assert allocate_ranks(importances, shapes, 6, 1, 9, rounding="paper") == {"a": 6, "b": 3, "c": 8}
    assert allocate_ranks(importances, shapes, 6, 4, 7, rounding="paper") == {"a": 6, "b": 4, "c": 7}
    assert allocate_ranks(list(importances.values()), list(shapes.values()), 6, 1, 9, rounding="paper") == [
        6,
        3,
        8,
    ]


def test_the_papers_rounding_breaks_the_budget_and_ours_does_not():
    budget = parameters(dict.fromkeys(SHAPES, 8), SHAPES)
    paper, exact = (allocate_ranks(IMPORTANCES, SHAPES, 8, 4, 32, rounding=r) for r in ("paper", "exact"))
    assert parameters(paper, SHAPES) != budget
    assert parameters(exact, SHAPES) == budget
    assert all(4 <= r <= 32 for r in exact.values())
    assert exact["o"] == max(exact.values())


@pytest.mark.parametrize("seed", range(8))
def test_the_budget_is_exact_for_any_importances(seed):
    """SDXL's own shapes, text encoders included, and odd ones; with and without a grid."""
    draw = torch.Generator().manual_seed(seed)
    sdxl = [
        (1280, 1280),
        (1280, 2048),
        (640, 640),
        (640, 2048),
        (10240, 1280),
        (1280, 5120),
        (768, 768),
        (5120, 640),
    ]
    odd = [(97, 61), (128, 33), (50, 201), (64, 64)]
    for kinds, reference, step in ((sdxl, 64, 8), (sdxl, 8, 1), (odd, 16, 1), (odd, 16, 2)):
        shapes = [kinds[i] for i in torch.randint(len(kinds), (60,), generator=draw).tolist()]
        importances = torch.randn(60, generator=draw).mul(3).exp().tolist()
        ranks = allocate_ranks(importances, shapes, reference, reference // 2, 4 * reference, step)
        assert sum((m + n) * r for r, (m, n) in zip(ranks, shapes, strict=True)) == sum(
            (m + n) * reference for m, n in shapes
        )
        assert all(
            r % step == 0 and reference // 2 <= r <= min(4 * reference, m, n)
            for r, (m, n) in zip(ranks, shapes, strict=True)
        )
        for shape in set(shapes):  # among equal shapes, more importance never gets less rank
            of_shape = sorted(
                (i, r) for i, r, s in zip(importances, ranks, shapes, strict=True) if s == shape
            )
            assert all(b[1] >= a[1] - step for a, b in itertools.pairwise(of_shape))


def test_equal_importance_at_equal_shapes_is_uniform():
    assert allocate_ranks([0.3] * 7, [(64, 32)] * 7, 8, 4, 32) == [8] * 7
    assert allocate_ranks([0.0] * 7, [(64, 32)] * 7, 8, 4, 32) == [8] * 7


def test_exact_ranks_move_the_least_they_must():
    """Costs 5 and 3 with budget 8 * 8 = 64: 5 a + 3 b = 64 has (5, 13), (8, 8) and (11, 3)."""
    assert exact_ranks([10.2, 4.3], [(2, 3), (1, 2)], 8, [1, 1], [20, 20]) == [11, 3]
    assert exact_ranks([8.6, 7.0], [(2, 3), (1, 2)], 8, [1, 1], [20, 20]) == [8, 8]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((8, 9, 32), "reference rank 8 must be a multiple of 1 from 9"),
        ((8, 4, 6), "from 4 to 6"),
        ((6, 4, 32, 4), "multiple of 4"),
    ],
)
def test_what_cannot_be_allocated(options, words):
    with pytest.raises(ValueError, match=words):
        allocate_ranks(IMPORTANCES, SHAPES, *options)
    with pytest.raises(ValueError, match="not finite"):
        allocate_ranks(IMPORTANCES | {"q": math.nan}, SHAPES, 8, 4, 32)
    with pytest.raises(ValueError, match=r"the narrowest layer has 1 channel$"):
        allocate_ranks([1.0], [(1, 8)], 8, 4, 32)


@pytest.mark.parametrize("init", ["svd", "random"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("rank", [4, 16, 48])
def test_delta_points_down_the_gradient_with_the_length_asked_for(init, k, rank):
    for seed, G in enumerate([random(48, 64), random(64, 48, seed=1), random(64, 2) @ random(2, 48, seed=2)]):
        down, up = gradient_factors(G, rank, k, init, gamma=0.03, random=torch.Generator().manual_seed(seed))
        assert down.shape == (k * rank, G.shape[1])
        assert up.shape == (G.shape[0], k * rank)
        delta = up @ down
        assert cosine(delta, -G) > 0  # the minus: with the gradient's own sign this is < 0
        assert float((G * delta).sum()) < 0  # to first order the loss falls
        assert float(delta.norm() / G.norm()) == pytest.approx(0.03, rel=1e-9)


def test_svd_is_the_best_direction_and_random_is_as_bad_as_it_must_be():
    G = random(96, 128)
    u, s, v = torch.linalg.svd(G)
    best = float(s[:16].square().sum().sqrt() / s.norm())
    svd, chance = (
        cosine(
            (lambda d, u: u @ d)(*gradient_factors(G, 16, 1, init, random=torch.Generator().manual_seed(0))),
            -G,
        )
        for init in ("svd", "random")
    )
    assert svd == pytest.approx(best, abs=1e-9)
    assert chance == pytest.approx(math.sqrt(16 / 128), abs=0.03)
    low = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    down, up = gradient_factors(low, 4)
    assert cosine(up @ down, -low) == pytest.approx(1, abs=1e-9)


def test_least_squares_is_minus_the_gradient_where_a_reaches():
    """B A is -G projected on A's rows: no other B comes nearer to -G."""
    G, A = random(24, 40), random(1, 1, 8, 40, seed=3)
    B = least_squares(project(G, A), A)[0, 0]
    q = torch.linalg.qr(A[0, 0].T).Q
    torch.testing.assert_close(B @ A[0, 0], -G @ q @ q.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_streamed_equals_stored(k):
    """The projection is linear: its sum over batches is that of the sum, and any prefix of A works."""
    batches, A = (
        [random(32, 48, seed=i, dtype=torch.float32) for i in range(16)],
        random(k, k, 8, 48 // k, seed=99, dtype=torch.float32),
    )
    stored = project(sum(batches), A)
    streamed = sum(project(G, A) for G in batches)
    assert float((stored - streamed).norm() / stored.norm()) < 1e-6
    prefix = least_squares(streamed[..., :5], A[:, :, :5])
    alone = least_squares(project(sum(batches), A[:, :, :5].clone()), A[:, :, :5].clone())
    assert float((prefix - alone).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("k", [1, 2, 4])
def test_factors_fill_the_layers_own_blocks(k):
    layer = (
        GraLoRALinear.from_linear(torch.nn.Linear(48, 32), 8, k)
        if k > 1
        else LoRALinear.from_linear(torch.nn.Linear(48, 32), 8)
    )
    G = random(32, 48, dtype=torch.float32)
    down, up = gradient_factors(G, 8, k)
    from gralora_diffusion.adapters.gradient_init import put_factors

    A = by_block(layer.adapter.gralora_A.detach()) if k > 1 else layer.adapter.lora_A.detach()[None, None]
    B = least_squares(project(G, A), A)
    put_factors(layer.adapter, A, B)
    for j in range(k):
        for i in range(k):
            mine = layer.delta().view(k, 32 // k, k, 48 // k)[j, :, i]
            torch.testing.assert_close(mine.double(), B[j, i] @ A[j, i].double(), rtol=0, atol=1e-5)
    assert cosine(layer.delta(), -G) > 0
    assert cosine(up @ down, -G) > cosine(layer.delta(), -G)
    if k > 1:
        torch.testing.assert_close(as_gralora(A, B)[0], layer.adapter.gralora_A.data)


def test_energy_by_hand():
    G = torch.zeros(4, 4)
    G[0, 0], G[1, 1], G[2, 2], G[3, 3] = 4, 3, 2, 1
    assert energies(G, 1).tolist() == pytest.approx([16 / 30, 25 / 30, 29 / 30, 1])
    assert energies(G, 2).tolist() == pytest.approx(
        [20 / 30, 20 / 30, 1, 1]
    )  # blocks (4, 3) and (2, 1): rank 2 is one of each
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 5)) == pytest.approx(1)


def test_an_outlier_fools_raw_energy_and_not_the_whitened():
    """Twelve directions in each half of the inputs suit k = 2; one channel x300 hides it from raw energy."""
    G = torch.zeros(64, 64, dtype=torch.float64)
    G[:32, :32], G[32:, 32:] = (
        random(32, 12) @ random(12, 32, seed=1),
        random(32, 12, seed=2) @ random(12, 32, seed=3),
    )
    clean = {k: float(energies(whitened(G), k)[23]) for k in (1, 2)}
    assert clean[2] == pytest.approx(1)  # 12 + 12 directions in 24 parameters' worth of rank
    G[:, 5] *= 300
    assert {k: float(energies(whitened(G), k)[11]) for k in (1, 2)} == pytest.approx(
        {k: float(energies(whitened(G / 7), k)[11]) for k in (1, 2)}
    )
    assert min(float(energies(G, k)[11]) for k in (1, 2)) > 0.99
    assert max(float(energies(whitened(G), k)[7]) for k in (1, 2)) < 0.9


def test_greedy_takes_the_most_energy_for_its_cost():
    gains = [[0.9, 1.0, 1.0, 1.0], [0.3, 0.6, 0.8, 1.0], [0.25, 0.5, 0.75, 1.0]]
    assert greedy_ranks(gains, [(8, 8)] * 3, 4, 2, 8, 2) == [
        2,
        4,
        6,
    ]  # +.3 to the second, then twice +.25 to the third


def test_ralora_and_the_papers_k():
    assert [ralora_k(e, 8, 8) for e in (1, 8, 15, 16, 40, 1000)] == [1, 1, 1, 2, 4, 8]
    assert choose_k(64, 2**20, 2**20) == 4
