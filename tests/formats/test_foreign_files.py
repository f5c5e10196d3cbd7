"""Every file of other tools in every use: generated with, merged, summed, converted, and trained on from."""

import pytest
import torch
from foreign_files import MADE, REFUSED
from helpers import MODELS
from safetensors.torch import save_file

from gralora_diffusion import AdapterConfig, inject, load_adapter, load_sdxl, remove
from gralora_diffusion.adapters.control import merge, unmerge
from gralora_diffusion.formats.combine import Weighted, summed
from gralora_diffusion.formats.inspection import inspect_adapter
from gralora_diffusion.formats.load import check_fits_base, path_in
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.training.start_from import start_from

EPSILON = dict(prediction_type="epsilon", rescale_betas_zero_snr=False)
SMALL = 1e-4


@pytest.fixture(scope="module")
def pipeline():
    return load_sdxl()


@pytest.fixture(scope="module")
def base(pipeline) -> dict[str, dict[str, torch.Tensor]]:
    return {name: dict(getattr(pipeline, name).state_dict()) for name in MODELS}


@pytest.fixture(scope="module")
def trained():
    """The embedded base with new adapters in all three models."""
    models = {name: getattr(load_sdxl(), name) for name in MODELS}
    for model in models.values():
        inject(model, AdapterConfig(rank=8, k=2, targets=r"to_[qkv]|to_out|conv|_proj|proj_in|mlp|text_p"))
    return models


@pytest.fixture
def file(request, tmp_path):
    tensors, header = MADE[request.param]
    path = tmp_path / "x.safetensors"
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, path, {"gralora.layers_per_block": "1"} | header)
    return path


every_file = pytest.mark.parametrize("file", MADE, indirect=True)


@torch.no_grad()
def outputs(pipeline) -> list[torch.Tensor]:
    """Of the three models, for fixed inputs."""
    random = torch.Generator().manual_seed(0)
    ids = torch.tensor([[5, 9, 700, 1629]])
    found = [pipeline.text_encoder(ids)[0], pipeline.text_encoder_2(ids)[0]]
    unet = pipeline.unet
    sample = torch.randn(1, unet.config.in_channels, 8, 8, generator=random)
    words = torch.randn(1, 4, unet.config.cross_attention_dim, generator=random)
    pooled = torch.randn(1, pipeline.text_encoder_2.config.projection_dim, generator=random)
    added = dict(text_embeds=pooled, time_ids=torch.full((1, 6), 64.0))
    return [*found, unet(sample, torch.tensor([500]), words, added_cond_kwargs=added).sample]


@every_file
def test_a_pipeline_computes_what_is_merged_into_it(file, pipeline, base):
    """At half strength; each changed parameter is the base's and half of the change."""
    plain = outputs(pipeline)
    load_adapter(pipeline, file, strength=0.5, name="x")
    beside = outputs(pipeline)
    for name in MODELS:
        merge(getattr(pipeline, name))
    merged = outputs(pipeline)
    for own, wanted in zip(beside, merged, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-3)
    sizes = []
    for component, name, delta in read_adapter(file).changes():
        own = path_in(getattr(pipeline, component), name)
        before = base[component][own]
        wanted = before.double() + 0.5 * delta.applied(before.double())
        after = getattr(pipeline, component).get_parameter(own)
        torch.testing.assert_close(after.double(), wanted, rtol=SMALL, atol=SMALL)
        sizes.append(float((after - before).norm()))
    changed = [not torch.equal(a, b) for a, b in zip(plain, merged, strict=True)]
    assert any(changed) == (max(sizes) > 0)
    for name in MODELS:
        unmerge(getattr(pipeline, name))
    remove(pipeline)
    assert all(torch.equal(a, b) for a, b in zip(plain, outputs(pipeline), strict=True))


@every_file
def test_it_is_inspected_summed_converted_and_trained_on_from(file, base, trained):
    text = inspect_adapter(file).text()
    assert "kind" in text
    adapter = read_adapter(file)
    check_fits_base(adapter, EMBEDDED, file)
    total = summed([Weighted(adapter, 0.5), Weighted(read_adapter(file), 0.25)])

    def weight(component: str, name: str) -> torch.Tensor:
        tensors = base[component]
        return tensors[name] if name in tensors else tensors[name.removeprefix("text_model.")]

    for k in (None, 2):
        found = nearest(total, 8, k=k, base=weight)
        assert 0 <= found.error < 1
        assert found.adapter.layers
    started = start_from(str(file), trained, EPSILON)
    assert started.errors
    assert 0 <= started.error < 1
    for model in trained.values():
        assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_merged_base_holds_every_kind_of_parameter(base, tmp_path):
    """Weights, norms, biases, embeddings and whole layers, streamed into one checkpoint's folder."""
    names = ("DoRA", "norm", "bias", "embedding", "embedding, whole", "whole layer of PEFT")
    tensors, inputs = {}, []
    for name in names:
        tensors = {key: tensor.contiguous() for key, tensor in MADE[name][0].items()}
        save_file(tensors, tmp_path / "x.safetensors")
        inputs.append(Weighted(read_adapter(tmp_path / "x.safetensors"), 0.5))
    total = summed(inputs)
    write_merged(tmp_path / "merged", total, None, torch.float32)
    again = load_sdxl(str(tmp_path / "merged"))
    for component, name, delta in total.changes():
        model = getattr(again, component)
        own = path_in(model, name)
        wanted = base[component][own] + delta.applied(base[component][own])
        torch.testing.assert_close(model.get_parameter(own).data, wanted, rtol=SMALL, atol=SMALL)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_one_sentence(name, tmp_path):
    tensors, words = REFUSED[name]
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=words) as caught:
        read_adapter(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert "x.safetensors" in str(caught.value)


def test_a_folder_is_read_by_its_only_file_or_its_models(tmp_path):
    tensors = {key: tensor.contiguous() for key, tensor in MADE["kohya"][0].items()}
    save_file(tensors, tmp_path / "my_style.safetensors")
    (tmp_path / "._my_style.safetensors").write_bytes(b"macOS")
    assert read_adapter(tmp_path).components == list(MODELS)
    assert inspect_adapter(tmp_path).bytes == (tmp_path / "my_style.safetensors").stat().st_size
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"several .*my_style.*other.*: give one of them"):
        read_adapter(tmp_path)
    folder = tmp_path / "peft" / "unet_lora"
    folder.mkdir(parents=True)
    save_file(MADE["PEFT, alone"][0], folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    assert read_adapter(tmp_path / "peft").components == ["unet"]
