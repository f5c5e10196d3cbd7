"""scripts/k_by_layer.py: rates are chosen on validation seeds alone, and tests are compared by pairs."""

import itertools
import json
import random
import re
import sys

import pytest
from helpers import SCRIPTS
from scipy import stats

from gralora_diffusion.experiments.outliers import plant_outliers
from gralora_diffusion.experiments.results import append_result
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import load_sdxl

sys.path.insert(0, str(SCRIPTS))

import k_by_layer
from k_by_layer import ARMS, ONE_K, RATES, RECOMMENDED, TEST, VALIDATION

BEST = {"LoRA": 1e-3, "k 2": 2e-3, "k 8": 3e-4, RECOMMENDED: 2e-3}


def loss_of(arm: str, rate: float, seed: int) -> float | None:
    """Lowest at BEST; the highest rate is not finite; each seed and arm has a noise of its own."""
    if rate == max(RATES):
        return None
    noise = random.Random(f"{arm} {seed}").random() / 1000
    return round(0.05 + 0.002 * ARMS.index(arm) + 0.01 * (rate != BEST[arm]) + noise, 6)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(k_by_layer, "KEPT", tmp_path)
    return tmp_path


def add(kept, arm: str, rate: float, seed: int) -> None:
    append_result(kept, dict(run=dict(arm=arm, lr=rate, seed=seed), loss=loss_of(arm, rate, seed)))


def test_the_report_compares_each_arm_at_its_own_rate_with_the_same_seeds(kept):
    for arm, rate, seed in itertools.product(ARMS, RATES, VALIDATION):
        add(kept, arm, rate, seed)
    with pytest.raises(ConfigError, match="the test runs are not complete"):
        list(k_by_layer.report())
    for arm, seed in itertools.product(ARMS, TEST):
        add(kept, arm, BEST[arm], seed)
    validation, best, tests = k_by_layer.report()
    assert validation.count("inf") == len(ARMS)
    assert best == "\nBest k for all layers, by these: LoRA\n"
    lines = {line.split("|")[1].strip(): line for line in tests.splitlines()}
    for arm, (place, other) in itertools.product(ARMS, enumerate(ONE_K)):
        cell = lines[arm].split("|")[4 + place].strip()
        if arm == other:
            assert cell == ""
            continue
        pairs = [(loss_of(arm, BEST[arm], seed), loss_of(other, BEST[other], seed)) for seed in TEST]
        found = stats.ttest_rel(*zip(*pairs, strict=True))
        low, high = (1000 * end for end in found.confidence_interval())
        mean = 1000 * sum(one - two for one, two in pairs) / len(pairs)
        printed = [float(number) for number in re.findall(r"[+-]?\d+\.?\d*(?:e-\d+)?", cell)]
        assert printed[:3] == pytest.approx([mean, low, high], abs=0.006)
        assert printed[3] == pytest.approx(found.pvalue, rel=0.06)


def test_the_layers_that_read_an_outlier_are_told_from_the_others(tmp_path, monkeypatch):
    unet = load_sdxl().unet
    planted = plant_outliers(unet, 1000, seed=3, norms=k_by_layer.norms_with_outliers(unet, seed=3))
    untouched = load_sdxl().unet.state_dict()
    changed = [path for path, value in unet.state_dict().items() if not value.equal(untouched[path])]
    readers = {f"unet.{path.removesuffix('.weight')}" for path in changed if ".to_" in path}
    assert len(planted) == 7
    other = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    by_layer = dict.fromkeys(readers, 8) | {other: 4, "another": 1, "one more": 1}
    layers = {path: dict(recommended=dict(k=k)) for path, k in by_layer.items()}
    (tmp_path / "base-report").mkdir()
    (tmp_path / "base-report" / "report.json").write_text(json.dumps(dict(layers=layers)))
    monkeypatch.setattr(k_by_layer, "base_of", lambda seed, state: tmp_path / "base")
    monkeypatch.setattr(k_by_layer, "VALIDATION", (3,))
    monkeypatch.setattr(k_by_layer, "TEST", ())
    (table,) = k_by_layer.recommendations(tmp_path)
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells == ["3", f"{len(readers)} with k 8", "2 with k 1, 1 with k 4", other]


def test_a_report_of_runs_that_are_not_complete_is_refused(kept):
    with pytest.raises(ConfigError, match=r"the runs of LoRA at 0\.0001 are not complete"):
        list(k_by_layer.report())
