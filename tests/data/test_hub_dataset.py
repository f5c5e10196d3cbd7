"""Hugging Face data sets, read by the package datasets from local folders: whole and streamed."""

import json

import datasets
import pytest
from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.dataset import instance_images
from gralora_diffusion.options import ConfigError

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def folder_of(path, kind):
    """Three images as a folder of images with metadata.jsonl, or as a parquet file that holds them."""
    path.mkdir(exist_ok=True)
    colors = ["red", "green", "blue"]
    for i, color in enumerate(colors):
        Image.new("RGB", (64 + 8 * i, 64), color).save(path / f"{i}.png")
    if kind == "folder":
        lines = [
            json.dumps(dict(file_name=f"{i}.png", words=f"a {color} dog")) for i, color in enumerate(colors)
        ]
        (path / "metadata.jsonl").write_text("\n".join(lines))
        return path
    rows = dict(
        image=[(path / f"{i}.png").read_bytes() for i in range(3)], words=["a red dog", None, "a blue dog"]
    )
    inner = path / "data"
    inner.mkdir()
    features = datasets.Features(image=datasets.Value("binary"), words=datasets.Value("string"))
    table = datasets.Dataset.from_dict(rows, features=features)
    table = table.map(
        lambda row: dict(image=dict(bytes=row["image"], path=None)),
        features=datasets.Features(image=datasets.Image(), words=features["words"]),
    )
    table.to_parquet(inner / "train-00000-of-00001.parquet")
    return inner


def config_of(folder, tmp_path, **options):
    common = dict(dataset_name=str(folder), caption_column="words", cache_dir=str(tmp_path / "hf"))
    return TrainConfig(**common | options)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_become_images(tmp_path, kind, streaming):
    folder, cache = folder_of(tmp_path / "set", kind), Cache(tmp_path / "cache")
    found = instance_images(config_of(folder, tmp_path, streaming=streaming, instance_prompt="a dog"), cache)
    assert [p.caption for p in found] == [
        "a red dog",
        "a green dog" if kind == "folder" else "a dog",
        "a blue dog",
    ]
    assert [p.size for p in found] == [(64, 64), (64, 72), (64, 80)]
    assert [p.open().getpixel((0, 0)) for p in found] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and not p.suffix]
    assert len(kept) == (3 if streaming else 0)
    assert (
        len(
            instance_images(
                config_of(folder, tmp_path, streaming=streaming, instance_prompt="x", max_train_samples=2),
                cache,
            )
        )
        == 2
    )


def test_without_a_caption_column_the_prompt_stands_in_and_it_is_said(tmp_path, capsys):
    folder = folder_of(tmp_path / "set", "folder")
    found = instance_images(config_of(folder, tmp_path, caption_column=None, instance_prompt="a dog"))
    assert {p.caption for p in found} == {"a dog"}
    assert all(p.prompted for p in found)
    assert "no --caption_column is given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        (
            dict(caption_column="text"),
            "caption_column",
            "--caption_column is 'text', which is not a column of",
        ),
        (dict(image_column="photo"), "image_column", "--image_column is 'photo', which is not a column of"),
        (
            dict(caption_column=None),
            "instance_prompt",
            "/set have no caption (row 0, row 1, row 2): give --instance_prompt or --caption_",
        ),
        (dict(dataset_name="nowhere/at-all"), "dataset_name", "no dataset can be read from nowhere/at-all"),
        (dict(dataset_config_name="other"), "dataset_name", "no dataset can be read from"),
        (dict(streaming=True), "streaming", "drop --no-cache_latents"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_its_option(tmp_path, monkeypatch, options, option, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = folder_of(tmp_path / "set", "folder")
    with pytest.raises(ConfigError) as caught:
        instance_images(config_of(folder, tmp_path, **options))
    assert words in str(caught.value)
    assert caught.value.option == option
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_named_or_skipped(tmp_path, streaming, capsys):
    folder = folder_of(tmp_path / "set", "folder")
    (folder / "1.png").write_bytes(b"nonsense")
    config = config_of(folder, tmp_path, streaming=streaming)
    with pytest.raises(ConfigError, match=r"1 file .*row 1 \(not an image"):
        instance_images(config, Cache(tmp_path / "cache"))
    found = instance_images(
        config_of(folder, tmp_path, streaming=streaming, on_bad_image="skip"), Cache(tmp_path / "cache")
    )
    assert [p.path.name for p in found] == ["row-0", "row-2"]
    assert "row 1 (not an image" in capsys.readouterr().err
