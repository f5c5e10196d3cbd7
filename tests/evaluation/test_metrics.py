"""Metrics against straightforward computations of their own, and paired differences of image sets."""

import dataclasses
import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Dinov2Model

from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features, run
from gralora_diffusion.evaluation.image_sets import ImageSet, References, images_in
from gralora_diffusion.evaluation.metric import METRICS
from gralora_diffusion.evaluation.metrics import COMPUTE, evaluate, measure
from gralora_diffusion.evaluation.report import score_tables
from gralora_diffusion.evaluation.retrieval import precision_of_random_order, subject_retrieval
from gralora_diffusion.evaluation.similarity import average_precision, nearest, similarities
from gralora_diffusion.evaluation.statistics import mean_and_interval
from gralora_diffusion.options import ConfigError

PROMPTS = ["a photo of sks dog"] * 2 + ["a cat at night"] * 2 + ["a red car"] * 2


def unit(vectors: list[torch.Tensor]) -> np.ndarray:
    rows = [vector.double().numpy() for vector in vectors]
    return np.stack([row / np.linalg.norm(row) for row in rows])


def clip_by_hand(folder, photos) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of images and PROMPTS from the library's own calls, one at a time, in numpy."""
    images = [Image.open(path).convert("RGB") for path in images_in(photos)]
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        seen = [model.encode_image(transform(image)[None])[0] for image in images]
        read = [model.encode_text(tokenize([prompt]))[0] for prompt in PROMPTS]
    return unit(seen), unit(read)


def dinov2_by_hand(folder, photos) -> tuple[np.ndarray, None]:
    images = [Image.open(path).convert("RGB") for path in images_in(photos)]
    model = Dinov2Model.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = [processor(images=image, return_tensors="pt") for image in images]
    with torch.no_grad():
        return unit([model(**given).last_hidden_state[0, 0] for given in inputs]), None


def vendi_by_hand(pair) -> float:
    """exp(entropy) of the eigenvalues of [[1, c], [c, 1]] / 2, which are (1 + c) / 2 and (1 - c) / 2."""
    parts = [(1 + sign * (pair[0] @ pair[1])) / 2 for sign in (1, -1)]
    return math.exp(-sum(part * math.log(part) for part in parts))


def precision_by_hand(query, subject, others) -> float:
    gallery = [(query @ image, True) for image in subject] + [(query @ image, False) for image in others]
    gallery.sort(key=lambda entry: -entry[0])
    hits, precisions = 0, []
    for place, (_, is_subject) in enumerate(gallery, 1):
        if is_subject:
            hits += 1
            precisions.append(hits / place)
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize(("kind", "by_hand"), [("clip", clip_by_hand), ("dinov2", dinov2_by_hand)])
def test_metrics_equal_a_straightforward_computation(kind, by_hand, photos, tiny_clip, tiny_dinov2):
    folder = dict(clip=tiny_clip, dinov2=tiny_dinov2)[kind]
    images, texts = by_hand(folder, photos)
    encoder, paths = load_encoder(f"{kind}:{folder}"), images_in(photos)
    against = References(references=paths[1:4], originals=paths[::-1], base=paths[1:] + paths[:1])
    against = dataclasses.replace(against, lookalikes=paths[4:])
    measured = measure(encoder, ImageSet("r", paths, PROMPTS), against, image_features)
    found = {one.metric.name: one.values.tolist() for one in measured}
    n = len(paths)
    with_references = [images[i] @ images[1:4].T for i in range(n)]
    expected = dict(
        subject=[sum(cosines) / 3 for cosines in with_references],
        paired=[images[i] @ images[n - 1 - i] for i in range(n)],
        drift=[(1 - images[i] @ images[(i + 1) % n]) / 2 for i in range(n)],
        diversity=[1 - images[i] @ images[i + 1] for i in (0, 2, 4)],
        vendi=[vendi_by_hand(images[i : i + 2]) for i in (0, 2, 4)],
        identity=[precision_by_hand(images[i], images[1:4], images[4:]) for i in range(n)],
        copy=[max(cosines) for cosines in with_references],
    )
    if texts is not None:
        expected["prompt"] = [images[i] @ texts[i] for i in range(n)]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_every_metric_of_images_is_computed():
    """All but the losses, which training measures; each with a direction."""
    losses = {"held-out loss", "training loss"}
    assert METRICS.keys() - COMPUTE.keys() == losses
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"drift", "copy"} | losses


def test_an_image_against_itself_scores_1(photos, tiny_dinov2):
    encoder, path = load_encoder(f"dinov2:{tiny_dinov2}"), images_in(photos)[:1]
    itself = References(references=path, originals=path, base=path)
    measured = measure(encoder, ImageSet("r", path), itself, image_features)
    values = {one.metric.name: one.values.item() for one in measured}
    assert values == pytest.approx(dict(subject=1, paired=1, drift=0, copy=1), abs=1e-6)


def test_the_result_names_how_partners_were_found(photos, tiny_dinov2, tmp_path):
    paths, others = images_in(photos)[:3], []
    for i, path in enumerate(paths):
        others.append(tmp_path / f"true-{i}.png")
        others[-1].write_bytes(path.read_bytes())
    against = References(originals=others, base=paths[::-1])
    encoder = load_encoder(f"dinov2:{tiny_dinov2}")
    result = evaluate([encoder], [ImageSet("r", paths)], against, image_features)
    means = {score["score"]: score["mean"] for score in result["scores"]}
    assert means == pytest.approx(dict(paired=1, drift=0), abs=1e-6)
    assert [value["beside"] for value in result["values"]] == [path.name for path in [*others, *paths]]
    assert result["settings"]["matched"] == {"r": dict(paired="by order", drift="by name")}
    remark = "r (paired): the names of the images and their partners are not the same"
    assert remark in score_tables(result)


def test_images_without_prompts_have_no_diversity(photos, tiny_dinov2):
    """They may be of many prompts."""
    encoder, run = load_encoder(f"dinov2:{tiny_dinov2}"), ImageSet("r", images_in(photos))
    assert measure(encoder, run, References(), image_features) == []


def test_cudnn_is_on_and_deterministic_while_an_encoder_runs(tiny_dinov2):
    seen, cudnn = {}, torch.backends.cudnn

    def side(inputs):
        seen.update(enabled=cudnn.enabled, deterministic=cudnn.deterministic, tf32=cudnn.allow_tf32)
        return inputs

    run(load_encoder(f"dinov2:{tiny_dinov2}"), side, torch.ones(1, 2))
    assert seen == dict(enabled=True, deterministic=True, tf32=False)


def test_copies_are_nearer_than_training_images_to_each_other():
    references = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]]), dim=1)
    generated = torch.nn.functional.normalize(torch.tensor([[0.0, 0.1, 1], [1, 1, 1]]), dim=1)
    values, index, limit = nearest(generated, references)
    assert limit == pytest.approx(0.8)
    assert index == [2, 1]
    assert (values > limit).tolist() == [True, True]  # 0.995 and 0.808


def test_paired_differences_are_of_the_same_images(photos, tiny_clip):
    paths, encoder = images_in(photos), load_encoder(f"clip:{tiny_clip}")
    against = References(references=paths[:2])
    runs = [ImageSet("base", paths, PROMPTS), ImageSet("tuned", paths[::-1], PROMPTS)]
    result = evaluate([encoder], runs, against, image_features)
    vectors = image_features(encoder, paths)
    gains = similarities(vectors.flip(0), vectors[:2]) - similarities(vectors, vectors[:2])
    (found,) = [d for d in result["differences"] if d["score"] == "subject"]
    expected = mean_and_interval(gains, clusters=PROMPTS)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (found["label"], found["run"], found["against"]) == ("CLIP-I", "tuned", "base")
    fewer = [runs[0], ImageSet("fewer", paths[:4], PROMPTS[:4])]
    with pytest.raises(ConfigError, match="fewer has 4 images and base has 6"):
        evaluate([encoder], fewer, against, image_features)
    assert not evaluate([encoder], fewer, against, image_features, paired=False)["differences"]


def test_words_left_out_of_prompts_are_in_the_remarks(photos, tiny_clip):
    encoder, paths = load_encoder(f"clip:{tiny_clip}"), images_in(photos)
    without = [prompt.replace("sks ", "") for prompt in PROMPTS]
    dropped = References(drop=("sks",))
    result = evaluate([encoder], [ImageSet("r", paths, PROMPTS)], dropped, image_features)
    plain = evaluate([encoder], [ImageSet("r", paths, without)], References(), image_features)

    def prompt_values(result):
        return [value["value"] for value in result["values"] if value["score"] == "prompt"]

    assert prompt_values(result) == prompt_values(plain)
    assert "without the word: sks" in score_tables(result)
    assert "trigger word included" in score_tables(plain)


def test_subjects_that_are_apart_are_told_apart():
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1, 0.2], [0.1, 1], [1, 0.3]]), dim=1)
    found = subject_retrieval(features, ["a", "a", "b", "b"])
    assert found["nearest_is_the_same_subject"] == 0.5  # the first and the third
    assert found["nearest_is_the_same_subject_interval"] == pytest.approx((0.068, 0.932), abs=5e-4)
    assert found["triples_in_order"] == pytest.approx((2 / 2 + 1 / 2 + 2 / 2 + 0 / 2) / 4)
    for subjects in ("aaaa", "abcd"):
        with pytest.raises(ConfigError, match="at least two subjects, and at least two images"):
            subject_retrieval(features, list(subjects))


def test_look_alikes_win_ties_and_precision_is_in_float64():
    same = torch.nn.functional.normalize(torch.ones(1, 4), dim=1)
    assert average_precision(same, same, same.repeat(2, 1)).item() == 1 / 3


@pytest.mark.parametrize(("subject", "others"), [(1, 1), (3, 7), (5, 30), (4, 0)])
def test_the_precision_of_a_random_order_is_its_mean(subject, others):
    random = np.random.default_rng(0)
    found = []
    for _ in range(4000):
        hits = random.permutation(subject + others) < subject
        places = np.flatnonzero(hits) + 1
        found.append((np.arange(1, subject + 1) / places).mean())
    assert precision_of_random_order(subject, others) == pytest.approx(np.mean(found), abs=0.02)
