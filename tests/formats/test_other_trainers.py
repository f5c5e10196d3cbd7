"""Kinds and spellings of other trainers: what PEFT, LyCORIS and OneTrainer compute, in float64."""

import importlib
import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import MODELS
from peft import LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from gralora_diffusion import load_adapter, load_sdxl, remove
from gralora_diffusion.adapters.control import merge, unmerge
from gralora_diffusion.adapters.oft_v2 import OFTv2
from gralora_diffusion.formats.load import learn_shapes
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.nearest import as_lora, nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.read_peft import PEFT_CONFIG, PEFT_TENSORS
from gralora_diffusion.options import ConfigError

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
Q, K, FF = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.2"
OUT = f"{BLOCK}.attn1.to_out.0"
KOHYA = "lora_unet_" + Q.replace(".", "_")
EMBEDDING = "text_model.embeddings.token_embedding"
POSITION = "text_model.embeddings.position_embedding"
TEXT_Q = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def pipeline():
    return load_sdxl()


def models_of(pipeline) -> dict[str, nn.Module]:
    return {name: getattr(pipeline, name) for name in MODELS}


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in model.state_dict().items()}


def made_by_peft(model, config, folder) -> tuple[dict, dict]:
    """(the base's tensors, PEFT's merged ones) in float64, with random factors; its folder is written."""
    base = weights_of(model)
    adapted = get_peft_model(model, config).double()
    torch.manual_seed(0)
    for p in adapted.parameters():
        if p.requires_grad:
            p.data = torch.randn_like(p) * 0.3
    adapted.save_pretrained(folder)
    return base, adapted.merge_and_unload().state_dict()


def copied(unet) -> UNet2DConditionModel:
    copy = UNet2DConditionModel.from_config(unet.config)
    copy.load_state_dict(unet.state_dict())
    return copy


def check_changes(adapter, base, merged, tolerance=1e-10) -> None:
    """The changes of an adapter are those of PEFT's merge, and of no other parameter."""
    found = {name: delta for _, name, delta in adapter.changes()}
    assert set(found) == {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    for name, delta in found.items():
        difference = merged[name] - base[name]
        assert difference.norm() > 1e-3
        torch.testing.assert_close(delta.applied(base[name]), difference, rtol=0, atol=tolerance)


# ----- VeRA without stored projections


@pytest.fixture
def seeded_vera(pipeline, tmp_path):
    """(folder of a VeRA on layers of different sizes, base, merged)"""
    config = VeraConfig(r=5, save_projection=False, projection_prng_key=17, target_modules=[Q, K, FF])
    base, merged = made_by_peft(copied(pipeline.unet), config, tmp_path)
    assert not any("vera_A" in name for name in load_file(tmp_path / PEFT_TENSORS))
    return tmp_path, base, merged


@pytest.mark.filterwarnings("ignore")
def test_projections_of_vera_are_made_again_from_their_seed(seeded_vera, pipeline, capsys):
    folder, base, merged = seeded_vera
    adapter = read_adapter(folder)
    assert "made again from its seed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="give the base with --pretrained_model_name_or_path"):
        next(iter(adapter.changes()))[2].delta()
    learn_shapes(adapter, models_of(pipeline))
    check_changes(adapter, base, merged)
    found = nearest(adapter, 5, base=lambda _, name: base[name])
    assert found.error < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_base_is_merged_with_a_vera_of_a_seed(seeded_vera, tmp_path):
    folder, _, merged = seeded_vera
    write_merged(tmp_path / "merged", read_adapter(folder), None, torch.float32)
    again = load_sdxl(str(tmp_path / "merged")).unet.state_dict()
    for name in (Q, K, FF):
        torch.testing.assert_close(again[f"{name}.weight"], merged[f"{name}.weight"].float())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(save_projection=True), "says that they are saved"),
        (dict(projection_prng_key=-1), "projection_prng_key"),
        (dict(projection_prng_key="0"), "projection_prng_key"),
    ],
    ids=str,
)
def test_a_vera_without_seed_and_projections_is_refused(options, words, seeded_vera):
    folder = seeded_vera[0]
    config = json.loads((folder / PEFT_CONFIG).read_text()) | options
    (folder / PEFT_CONFIG).write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{words}.*save it in PEFT with save_projection=True"):
        read_adapter(folder)


# ----- embeddings


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_of_embeddings_is_that_of_peft(rslora, tmp_path):
    names = ["token_embedding", "position_embedding", "q_proj"]
    config = LoraConfig(r=4, lora_alpha=6, use_rslora=rslora, target_modules=names)
    model = load_sdxl().text_encoder_2
    ids = torch.tensor([[5, 9, 700, 1629]])
    plain = model(ids)[0].detach()
    base, merged = made_by_peft(model, config, tmp_path / "text_encoder_2")
    adapter = read_adapter(tmp_path)
    assert set(adapter.deltas["text_encoder_2"]) == {f"{EMBEDDING}.weight", f"{POSITION}.weight"}
    check_changes(adapter, base, merged)

    pipeline = load_sdxl()
    wanted = load_sdxl().text_encoder_2
    wanted.load_state_dict({name: tensor.float() for name, tensor in merged.items()})
    wanted = wanted(ids)[0].detach()
    assert float((wanted - plain).norm() / plain.norm()) > 0.01
    load_adapter(pipeline, tmp_path, name="x")
    close = dict(rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pipeline.text_encoder_2(ids)[0], wanted, **close)
    merge(pipeline.text_encoder_2)
    torch.testing.assert_close(pipeline.text_encoder_2(ids)[0], wanted, **close)
    unmerge(pipeline.text_encoder_2)
    remove(pipeline)
    assert torch.equal(pipeline.text_encoder_2(ids)[0], plain)
    assert type(pipeline.text_encoder_2.get_submodule(EMBEDDING)) is nn.Embedding


def test_an_embedding_is_merged_and_left_out_of_a_lora_by_name(tmp_path):
    torch.manual_seed(0)
    key = f"text_encoder.{EMBEDDING}"
    tensors = {
        f"{key}.lora_embedding_A": torch.randn(4, 1630),
        f"{key}.lora_embedding_B": torch.randn(64, 4),
        f"text_encoder.{TEXT_Q}.lora_A.weight": torch.randn(4, 64),
        f"text_encoder.{TEXT_Q}.lora_B.weight": torch.randn(64, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert as_lora(adapter).left_out == [f"text_encoder.{EMBEDDING}.weight"]
    write_merged(tmp_path / "merged.safetensors", adapter, None, torch.float32)
    name = f"conditioner.embedders.0.transformer.{EMBEDDING}.weight"
    merged = load_file(tmp_path / "merged.safetensors")[name]
    table = load_sdxl().text_encoder.get_input_embeddings().weight.detach()
    A, B = tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"]
    torch.testing.assert_close(merged, table + (B @ A).T)


# ----- OFT v2 of OneTrainer and kohya's scripts


@pytest.mark.filterwarnings("ignore")
def test_oft_without_a_config_is_that_of_peft_in_linear_layers(pipeline, tmp_path):
    config = OFTConfig(oft_block_size=8, target_modules=[Q, OUT])
    base, merged = made_by_peft(copied(pipeline.unet), config, tmp_path)
    tensors = {}
    for key, tensor in load_file(tmp_path / PEFT_TENSORS).items():
        path = key.removeprefix("base_model.model.").removesuffix(".oft_R.weight")
        tensors[f"lora_unet_{path.replace('.', '_')}.oft_R.weight"] = tensor
    save_file(tensors, tmp_path / "x.safetensors")
    check_changes(read_adapter(tmp_path / "x.safetensors"), base, merged)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("is_conv", [False, True])
def test_oft_v2_turns_blocks_as_onetrainer_does(is_conv, scaled, shared):
    """By loops: x R for linear layers, and W R for convolutions, whose kernel counts as inputs."""
    torch.manual_seed(0)
    shape = (6, 4, 3, 3) if is_conv else (6, 36)
    weight = torch.randn(shape, dtype=torch.float64)
    triangles = torch.randn(1 if shared else 9, 6, dtype=torch.float64) * 0.1
    tensors = dict(rotation=triangles) | (dict(scaled_oft=torch.tensor(1)) if scaled else {})
    new = weight.flatten(1).clone()
    for block in range(9):
        row = triangles[0 if shared else block] / (6**0.5 if scaled else 1)
        S = torch.zeros(4, 4, dtype=torch.float64)
        places = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        for (i, j), value in zip(places, row, strict=True):
            S[i, j], S[j, i] = value, -value
        R = torch.eye(4, dtype=torch.float64) + 2 * S + 2 * S @ S + 2 * S @ S @ S + S @ S @ S @ S
        part = slice(4 * block, 4 * block + 4)
        new[:, part] = weight.flatten(1)[:, part] @ (R if is_conv else R.T)
    delta = OFTv2(tensors).applied(weight)
    torch.testing.assert_close(weight + delta, new.reshape(shape), rtol=0, atol=1e-12)


# ----- T-LoRA of LyCORIS


@pytest.mark.parametrize("is_conv", [False, True])
def test_t_lora_of_lycoris_subtracts_its_start(is_conv, tmp_path):
    module = importlib.import_module("lycoris.modules.tlora").TLoraModule
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 64, 1) if is_conv else nn.Linear(48, 64)
    key = "lora_unet_down_blocks_1_resnets_0_conv_shortcut" if is_conv else KOHYA
    adapted = module(key, layer, lora_dim=5, alpha=3.0).double()
    for p in (adapted.q_layer.weight, adapted.p_layer.weight, adapted.lambda_layer):
        p.data += torch.randn_like(p) * 0.2
    wanted = adapted.get_diff_weight()[0].detach().reshape(layer.weight.shape)
    tensors = {f"{key}.{leaf}": t.detach().contiguous() for leaf, t in adapted.custom_state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    ((_, _, delta),) = read_adapter(tmp_path / "x.safetensors").changes()
    own = delta.applied(layer.weight.detach().double())
    assert float((own - wanted).norm() / wanted.norm()) < 1e-5  # LyCORIS finds its start in fp32


@pytest.mark.parametrize("options", [dict(sig_type="last"), dict(use_data_init="False")], ids=str)
def test_a_t_lora_of_another_start_is_refused(options, tmp_path):
    tensors = {f"{KOHYA}.q_layer.weight": torch.ones(2, 160), f"{KOHYA}.p_layer.weight": torch.ones(160, 2)}
    tensors[f"{KOHYA}.lambda_layer"] = torch.ones(1, 2)
    header = {"ss_network_args": json.dumps(dict(algo="tlora") | options)}
    save_file(tensors, tmp_path / "x.safetensors", header)
    with pytest.raises(ConfigError, match=r"is a T-LoRA that did not begin.*merge it in LyCORIS"):
        read_adapter(tmp_path / "x.safetensors")


# ----- KronA and CDKA, whose scale is in the tensors of some versions only


def kron_of(path, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """A file of the network krona with these options; its two factors."""
    w1, w2 = torch.randn(20, 4), torch.randn(8, 40)
    tensors = {f"{KOHYA}.lokr_w1": w1, f"{KOHYA}.lokr_w2": w2, f"{KOHYA}.alpha": torch.tensor(16.0)}
    save_file(tensors, path, {"ss_network_args": json.dumps(dict(factor_in="40") | options)})
    return w1, w2


@pytest.mark.parametrize("options", [dict(cdka_alpha="16"), dict(use_cdka_scale="true", krona_alpha="16")])
def test_a_krona_with_a_scale_of_its_own_is_refused(options, tmp_path):
    kron_of(tmp_path / "x.safetensors", **options)
    with pytest.raises(ConfigError, match=r"was trained with (cdka_alpha|use_cdka_scale), .*gralora extract"):
        read_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize("options", [{}, dict(cdka_alpha="None"), dict(use_cdka_scale="false")])
def test_a_krona_without_a_scale_is_the_product_of_its_factors(options, tmp_path):
    w1, w2 = kron_of(tmp_path / "x.safetensors", **options)
    ((_, _, delta),) = read_adapter(tmp_path / "x.safetensors").changes()
    torch.testing.assert_close(delta.delta(), torch.kron(w1, w2))


# ----- weights and biases that PEFT saves beside a LoRA


@pytest.mark.filterwarnings("ignore")
def test_whole_layers_and_biases_beside_a_lora_are_those_of_peft(pipeline, tmp_path):
    model = copied(pipeline.unet)
    config = LoraConfig(
        r=4, lora_alpha=8, bias="lora_only", target_modules=[OUT], modules_to_save=["conv_in"]
    )
    base, merged = made_by_peft(model, config, tmp_path)
    assert {"conv_in.weight", "conv_in.bias", f"{OUT}.bias"} < set(merged)
    check_changes(read_adapter(tmp_path), base, merged)
