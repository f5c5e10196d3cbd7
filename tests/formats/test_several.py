"""Several adapters in one diffusers pipeline: strength, switch, removal, merging, saving, compiling."""

import pytest
import torch
from adapter_files import CONFIGS, close, deltas, weight_ids
from diffusers import StableDiffusionXLPipeline
from helpers import MODELS, adapted_pipeline

from gralora_diffusion import load_adapter, load_sdxl
from gralora_diffusion.adapters.control import enable, merge, remove, set_strength, unmerge
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_native
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import EMBEDDED


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    first, second = (Adapter.from_models(adapted_pipeline(CONFIGS[name])[1]) for name in ("mixed", "lora"))
    write_native(folder / "dog.safetensors", first)
    write_comfyui(folder / "style.safetensors", second, torch.float32)
    return folder, deltas(first), deltas(second)


def weights_now(pipeline) -> dict[str, torch.Tensor]:
    """What each adapted layer adds to its weight, from its answer to the identity."""
    found = {}
    for component in MODELS:
        for path, layer in adapted_layers(getattr(pipeline, component)).items():
            plain = layer.to_plain()
            identity = torch.eye(layer.in_features)
            found[f"{component}.{canonical(component, path)}"] = (
                layer(identity) - plain(identity)
            ).T.double()
    return found


def same(got, wanted):
    assert got.keys() == wanted.keys()
    for layer in wanted:
        torch.testing.assert_close(got[layer], wanted[layer], rtol=0, atol=5e-6)


def test_several_adapters_in_a_plain_pipeline(two_files):
    folder, dog, style = two_files
    pipeline = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    keys = {c: set(getattr(pipeline, c).state_dict()) for c in MODELS}
    weights = {c: weight_ids(getattr(pipeline, c)) for c in MODELS}
    assert load_adapter(pipeline, folder / "dog.safetensors", 0.5)["name"] == "dog"
    load_adapter(pipeline, folder / "style.safetensors", 2.0, name="paint")
    same(weights_now(pipeline), {layer: 0.5 * dog[layer] + 2 * style[layer] for layer in dog})
    for c in MODELS:  # the base's tensors are where they were, and no other name is taken by a weight
        assert keys[c] <= set(getattr(pipeline, c).state_dict())
        assert weights[c].items() <= weight_ids(getattr(pipeline, c)).items()
    with pytest.raises(ConfigError, match="already has an adapter named 'dog'"):
        load_adapter(pipeline, folder / "dog.safetensors")
    with pytest.raises(ValueError, match=r"no adapter named 'cat'; known: dog, paint"):
        set_strength(pipeline, 1, "cat")
    set_strength(pipeline, 1.0, "dog")
    enable(pipeline, False, "paint")
    same(weights_now(pipeline), dog)
    enable(pipeline, True, "paint")
    merge(pipeline.unet)
    set_strength(pipeline, 0.25, "paint")  # merged layers are merged anew
    unet = {layer: delta for layer, delta in dog.items() if layer.startswith("unet.")}
    for path, layer in adapted_layers(pipeline.unet).items():
        wanted = unet[f"unet.{path}"] + 0.25 * style[f"unet.{path}"]
        torch.testing.assert_close(
            layer.weight.double() - layer.unmerged_weight.double(), wanted, rtol=0, atol=5e-6
        )
    unmerge(pipeline.unet)
    remove(pipeline, "dog")
    same(weights_now(pipeline), {layer: 0.25 * delta for layer, delta in style.items()})
    load_adapter(pipeline, folder / "dog.safetensors")
    remove(pipeline, "dog")
    remove(pipeline, "paint")
    assert not any(adapted_layers(getattr(pipeline, c)) for c in MODELS)
    assert weights == {c: weight_ids(getattr(pipeline, c)) for c in MODELS}
    assert {c: set(getattr(pipeline, c).state_dict()) for c in MODELS} == keys


def test_a_pipeline_with_two_adapters_is_saved_one_at_a_time(two_files, tmp_path):
    from gralora_diffusion import save_adapter

    folder, _, style = two_files
    pipeline = load_sdxl()
    load_adapter(pipeline, folder / "dog.safetensors")
    load_adapter(pipeline, folder / "style.safetensors")
    models = {name: getattr(pipeline, name) for name in MODELS}
    with pytest.raises(ValueError, match="several adapters"):
        save_adapter(tmp_path / "x.safetensors", models)
    remove(pipeline, "dog")
    save_adapter(tmp_path / "x.safetensors", models)
    close(deltas(read_adapter(tmp_path / "x.safetensors")), style, 1e-6)


def test_compiled_models_follow_strength(two_files):
    torch._dynamo.reset()  # what other tests compiled of the same code counts against its limit
    folder, _, _ = two_files
    pipeline = load_sdxl()
    load_adapter(pipeline, folder / "dog.safetensors")
    load_adapter(pipeline, folder / "style.safetensors", 0.5)
    block = pipeline.unet.mid_block.attentions[0].transformer_blocks[0]
    width, cross = block.attn1.to_q.in_features, block.attn2.to_k.in_features
    x, text = torch.randn(1, 4, width), torch.randn(1, 3, cross)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for strength in (0.5, 0.0, 2.0):
            set_strength(pipeline, strength, "style")
            torch.testing.assert_close(
                compiled(x, encoder_hidden_states=text),
                block(x, encoder_hidden_states=text),
                rtol=0,
                atol=1e-5,
            )
        before = compiled(x, encoder_hidden_states=text)
        remove(pipeline, "style")
        after = compiled(x, encoder_hidden_states=text)
        torch.testing.assert_close(after, block(x, encoder_hidden_states=text), rtol=0, atol=1e-5)
        assert (after - before).abs().max() > 1e-3


def test_a_whole_unet_compiles(two_files):
    """With two adapters in it, as one graph; inductor, which needs a C++ compiler, takes the same graph."""
    torch._dynamo.reset()
    folder, _, _ = two_files
    pipeline = load_sdxl()
    load_adapter(pipeline, folder / "dog.safetensors")
    load_adapter(pipeline, folder / "style.safetensors", 0.5)
    unet, config = pipeline.unet, pipeline.unet.config
    random = torch.Generator().manual_seed(0)
    text = torch.randn(1, 4, config.cross_attention_dim, generator=random)
    added = dict(
        text_embeds=torch.randn(1, pipeline.text_encoder_2.config.projection_dim, generator=random),
        time_ids=torch.full((1, 6), 64.0),
    )
    given = torch.randn(1, config.in_channels, 8, 8, generator=random), torch.tensor(500), text
    with torch.no_grad():
        compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)(
            *given, added_cond_kwargs=added
        ).sample
        torch.testing.assert_close(compiled, unet(*given, added_cond_kwargs=added).sample, rtol=0, atol=1e-5)
        enable(pipeline, False)
        assert (unet(*given, added_cond_kwargs=added).sample - compiled).abs().max() > 1e-2
