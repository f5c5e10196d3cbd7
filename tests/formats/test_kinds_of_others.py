"""Every kind of adapter that other tools make: the change that we read is the one that they compute."""

import functools
import json
import random

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from helpers import GRALORA
from lycoris_files import KINDS, stored_by_lycoris
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from gralora_diffusion import enable, load_adapter, load_sdxl, remove
from gralora_diffusion.adapters.control import bake_in, merge, unmerge
from gralora_diffusion.adapters.lycoris import GLoRA
from gralora_diffusion.formats.combine import Weighted, summed
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.nearest import as_lora, nearest
from gralora_diffusion.formats.patterns import check_bounded, pattern_value
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.read_peft import PEFT_CONFIG
from gralora_diffusion.options import ConfigError

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
K = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "mid_block.resnets.0.conv1"
NORM = "mid_block.attentions.0.transformer_blocks.0.norm1"
GROUP_NORM = "mid_block.resnets.0.norm1"


@pytest.mark.parametrize("kind", KINDS)
def test_lycoris_computes_the_same(kind, tmp_path):
    """The output of the layer with our change is that of LyCORIS's own module."""
    stored = stored_by_lycoris(kind)
    save_file({key: t.contiguous() for key, t in stored.tensors.items()}, tmp_path / "x.safetensors")
    before = {name: p.detach() for name, p in stored.layer.named_parameters()}
    after = dict(before)
    for _, name, delta in read_adapter(tmp_path / "x.safetensors").changes():
        leaf = name.rpartition(".")[2]
        after[leaf] = before[leaf] + delta.applied(before[leaf])
        if delta.pair() is not None:
            down, up = delta.pair()
            torch.testing.assert_close((up @ down).reshape(before[leaf].shape), after[leaf] - before[leaf])

    def output(tensors):
        if stored.x.ndim == 4:
            return F.conv2d(stored.x, tensors["weight"], tensors["bias"], padding=1)
        return F.linear(stored.x, tensors["weight"], tensors["bias"])

    change = stored.y - output(before)
    assert float(change.norm()) > 0.01
    assert float((output(after) - stored.y).norm() / change.norm()) < 3e-5


@pytest.mark.parametrize("size", [48, 4])
@pytest.mark.parametrize("older", [False, True])
def test_glora_of_a_square_layer_is_read_by_its_rank(older, size):
    """Its four matrices fit both ways of storing them; the rank is the smaller number."""
    torch.manual_seed(0)
    weight, rank = torch.randn(size, size, dtype=torch.float64), 2
    a1, b1 = torch.randn(2, size, rank, dtype=torch.float64)
    a2, b2 = torch.randn(2, rank, size, dtype=torch.float64)
    tensors = dict(a1=a1, a2=a2, b1=b1, b2=b2)
    if older:
        tensors = dict(a1=a2, a2=a1, b1=b2, b2=b1)
    delta = GLoRA(tensors, alpha=1.0)
    assert delta.rank == rank
    torch.testing.assert_close(delta.delta(weight), (weight @ a1 @ a2 + b1 @ b2) / rank)


PEFT_CONFIGS = {
    "DoRA": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=[Q, K, CONV]),
    "rsLoRA": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=[Q, CONV]),
    "bias": LoraConfig(r=4, lora_alpha=8, lora_bias=True, target_modules=[CONV]),
    "patterns": LoraConfig(
        r=4, lora_alpha=8, target_modules=[Q, K], rank_pattern={K: 2}, alpha_pattern={r"attn2.to_k": 3}
    ),
    "orthogonal": LoraConfig(r=4, lora_alpha=8, init_lora_weights="orthogonal", target_modules=[Q]),
    "LoHa": LoHaConfig(r=4, alpha=8, target_modules=[Q, CONV]),
    "LoHa, patterns": LoHaConfig(
        r=4, alpha=8, target_modules=[Q, K], rank_pattern={K: 2}, alpha_pattern={K: 3}
    ),
    "LoKr": LoKrConfig(r=2, alpha=3, target_modules=[Q, CONV]),
    "LoKr, whole": LoKrConfig(r=64, alpha=128, target_modules=[Q]),
}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return load_sdxl().unet


@pytest.mark.filterwarnings("ignore:.*have invalid shape")  # of a bias, which has one dimension
@pytest.mark.parametrize("kind", PEFT_CONFIGS)
@pytest.mark.parametrize("lone", [False, True], ids=["folder", "file"])
def test_peft_merges_to_the_same_weights(kind, lone, unet, tmp_path):
    base = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    model = UNet2DConditionModel.from_config(unet.config)
    model.load_state_dict(base)
    model = get_peft_model(model, PEFT_CONFIGS[kind])
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data = p.data * 1.1 if "magnitude" in name else torch.randn_like(p) * 0.1
    model.save_pretrained(tmp_path / "x")
    merged = model.merge_and_unload().state_dict()
    adapter = read_adapter(tmp_path / "x" / "adapter_model.safetensors" if lone else tmp_path / "x")
    found = {name: delta for _, name, delta in adapter.changes()}
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, base.get(name, tensor))}
    assert set(found) == changed
    for name, delta in found.items():
        wanted = merged[name] - base[name]
        torch.testing.assert_close(delta.applied(base[name]), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialization_that_changes_the_base_is_refused(start, unet, tmp_path):
    model = UNet2DConditionModel.from_config(unet.config)
    config = LoraConfig(r=2, init_lora_weights=start, target_modules=[Q])
    get_peft_model(model, config).save_pretrained(tmp_path / "x")
    with pytest.raises(ConfigError, match="which changes the base's weights"):
        read_adapter(tmp_path / "x")


@pytest.mark.parametrize(
    "options",
    [
        dict(alora_invocation_tokens=[1]),
        dict(layer_replication=[[0, 1]]),
        dict(use_qalora=True),
        dict(use_bdlora={"a": 1}),
        dict(kasa_config={"a": 1}),
        dict(use_dora=True),
    ],
    ids=str,
)
def test_options_of_peft_that_mean_something_else_are_refused(options, unet, tmp_path):
    model = UNet2DConditionModel.from_config(unet.config)
    get_peft_model(model, LoraConfig(r=2, target_modules=[Q])).save_pretrained(tmp_path / "x")
    config = json.loads((tmp_path / "x" / PEFT_CONFIG).read_text())
    (tmp_path / "x" / PEFT_CONFIG).write_text(json.dumps(config | options))
    with pytest.raises(ConfigError, match=next(iter(options))):
        read_adapter(tmp_path / "x")


def pair(n=48, m=64, r=3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(n + m)
    return torch.randn(r, n), torch.randn(m, r)


KOHYA_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
SGM = "middle_block.1.transformer_blocks.0.attn1.to_q"
NAMES = {  # {way of naming: the keys of one pair of the same layer}
    "kohya": (f"{KOHYA_Q}.lora_down.weight", f"{KOHYA_Q}.lora_up.weight"),
    "kohya, SGM": (
        f"lora_unet_{SGM.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{SGM.replace('.', '_')}.lora_up.weight",
    ),
    "OneTrainer and SimpleTuner": (
        f"{KOHYA_Q.replace('lora_unet', 'lycoris')}.lora_down.weight",
        f"{KOHYA_Q.replace('lora_unet', 'lycoris')}.lora_up.weight",
    ),
    "ComfyUI": (f"diffusion_model.{SGM}.lora_down.weight", f"diffusion_model.{SGM}.lora_up.weight"),
    "ComfyUI, PEFT's leaves": (
        f"diffusion_model.{SGM}.lora_A.weight",
        f"diffusion_model.{SGM}.lora_B.weight",
    ),
    "diffusers": (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"),
    "diffusers, adapter's name": (f"unet.{Q}.lora_A.default.weight", f"unet.{Q}.lora_B.default.weight"),
    "diffusers 2024": (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight"),
    "diffusers 2023": (f"unet.{Q}.lora_linear_layer.down.weight", f"unet.{Q}.lora_linear_layer.up.weight"),
    "diffusers processors": (
        f"unet.{Q.replace('to_q', 'processor.to_q')}_lora.down.weight",
        f"unet.{Q.replace('to_q', 'processor.to_q')}_lora.up.weight",
    ),
    "PEFT in diffusers": (
        f"unet.base_model.model.{Q}.lora_A.weight",
        f"unet.base_model.model.{Q}.lora_B.weight",
    ),
    "PEFT": (f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"),
    "no prefix": (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),
}


@pytest.mark.parametrize("way", NAMES)
def test_every_way_of_naming_is_read(way, tmp_path):
    down, up = pair()
    save_file(dict(zip(NAMES[way], (down, up), strict=True)), tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert list(adapter.layers) == ["unet"]
    got_down, got_up = adapter.low_rank("unet", Q)
    torch.testing.assert_close(got_up @ got_down, up @ down)


@pytest.mark.parametrize(
    ("prefix", "component"),
    [
        ("lora_te1_text_model_encoder_layers_3_mlp_fc1", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_3_mlp_fc1", "text_encoder_2"),
        ("text_encoder.text_model.encoder.layers.3.mlp.fc1", "text_encoder"),
        ("text_encoder.encoder.layers.3.mlp.fc1", "text_encoder"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1", "text_encoder"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc1", "text_encoder_2"),
    ],
)
def test_text_encoders_in_every_way_of_naming(prefix, component, tmp_path):
    down, up = pair()
    tensors = {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert list(adapter.layers[component]) == ["text_model.encoder.layers.3.mlp.fc1"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("transformer.blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "Flux"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "Stable Diffusion 1 or 2"),
        ("clip_l", "textual inversion"),
        (f"unet.{Q}.something", "unknown tensor"),
        ("lora_unet_nowhere.diff", "SDXL has no such layer"),
    ],
)
def test_what_is_not_for_sdxl_is_named(key, words, tmp_path):
    save_file({key: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=words):
        read_adapter(tmp_path / "x.safetensors")


def test_a_textual_inversion_beside_a_lora_is_left_out_by_name(tmp_path, capsys):
    down, up = pair()
    tensors = {f"{KOHYA_Q}.lora_down.weight": down, f"{KOHYA_Q}.lora_up.weight": up}
    save_file(tensors | {"bundle_emb.<me>.clip_l": torch.ones(2, 4)}, tmp_path / "x.safetensors")
    assert list(read_adapter(tmp_path / "x.safetensors").layers) == ["unet"]
    assert "bundle_emb.<me>.clip_l" in capsys.readouterr().err


# ----- in pipelines and bases


def shape_of(model, path: str) -> torch.Size:
    return model.get_submodule(path).weight.shape


def mixed_file(unet, file) -> None:
    """One file with LoCon, DoRA, LoHa, norms, biases and a whole difference, of the embedded base's sizes."""
    torch.manual_seed(5)
    m, n = shape_of(unet, Q)
    tensors = {
        f"{KOHYA_Q}.lora_down.weight": torch.randn(3, n),
        f"{KOHYA_Q}.lora_up.weight": torch.randn(m, 3),
    }
    tensors[f"{KOHYA_Q}.alpha"] = torch.tensor(0.3)
    tensors[f"{KOHYA_Q}.dora_scale"] = unet.get_submodule(Q).weight.norm(dim=1, keepdim=True) * 1.1
    kohya = "lora_unet_" + CONV.replace(".", "_")
    m, n, kh, kw = shape_of(unet, CONV)
    tensors[f"{kohya}.lora_down.weight"] = torch.randn(3, n, 1, 1)
    tensors[f"{kohya}.lora_mid.weight"] = torch.randn(3, 3, kh, kw) * 0.1
    tensors[f"{kohya}.lora_up.weight"] = torch.randn(m, 3, 1, 1) * 0.1
    tensors[f"{kohya}.diff_b"] = torch.randn(m) * 0.1
    kohya = "lora_unet_" + K.replace(".", "_")
    m, n = shape_of(unet, K)
    for name, shape in (("w1_a", (m, 2)), ("w1_b", (2, n)), ("w2_a", (m, 2)), ("w2_b", (2, n))):
        tensors[f"{kohya}.hada_{name}"] = torch.randn(shape) * 0.3
    for path in (NORM, GROUP_NORM):
        kohya = "lora_unet_" + path.replace(".", "_")
        tensors[f"{kohya}.w_norm"] = torch.randn(shape_of(unet, path)) * 0.1
        tensors[f"{kohya}.b_norm"] = torch.randn(shape_of(unet, path)) * 0.1
    kohya = "lora_unet_" + K.replace("to_k", "to_v").replace(".", "_")
    tensors[f"{kohya}.diff"] = torch.randn(m, n) * 0.05
    save_file({key: t.contiguous() for key, t in tensors.items()}, file)


def output(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = unet.dtype
    x = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator, dtype=dtype)
    width = unet.config.cross_attention_dim
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = dict(
        text_embeds=torch.randn(2, pooled, generator=generator, dtype=dtype),
        time_ids=torch.full((2, 6), 64.0, dtype=dtype),
    )
    text = torch.randn(2, 7, width, generator=generator, dtype=dtype)
    with torch.no_grad():
        return unet(x, 500, text, added_cond_kwargs=added).sample


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(a file of many kinds, a run's native GraLoRA with convolutions)"""
    from helpers import adapted_pipeline

    from gralora_diffusion import AdapterConfig, save_adapter

    folder = tmp_path_factory.mktemp("kinds")
    _, models = adapted_pipeline(AdapterConfig(rank=8, k=2, targets="attention+ff+conv"), ["unet"])
    save_adapter(folder / "gralora.safetensors", models)
    mixed_file(load_sdxl().unet, folder / "mixed.safetensors")
    return folder / "mixed.safetensors", folder / "gralora.safetensors"


@pytest.mark.filterwarnings("ignore:.*trained on a different base")
def test_kinds_stack_in_either_order_and_leave_no_trace(files):
    """Two adapters beside each other, at their strengths, equal the merged weights; removed, the base."""
    plain = load_sdxl()
    plain.unet.double()
    base = output(plain.unet)
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    outputs = []
    for order in (files, files[::-1]):
        pipeline = load_sdxl()
        pipeline.unet.double()
        for file in order:
            load_adapter(pipeline, file, strength=0.7 if file is files[0] else 1.0)
        stacked = output(pipeline.unet)
        merge(pipeline.unet)
        close(output(pipeline.unet), stacked)
        unmerge(pipeline.unet)
        assert torch.equal(output(pipeline.unet), stacked)
        enable(pipeline, False)
        close(output(pipeline.unet), base)
        enable(pipeline, True)
        outputs.append(stacked)
        remove(pipeline)
        assert torch.equal(output(pipeline.unet), base)
        assert pipeline.unet.state_dict().keys() == plain.unet.state_dict().keys()
    close(outputs[0], outputs[1])
    assert float((outputs[0] - base).norm() / base.norm()) > 0.05


@pytest.mark.filterwarnings("ignore:.*trained on a different base")
def test_a_merged_base_holds_what_the_pipeline_computes(files, tmp_path):
    pipeline = load_sdxl()
    load_adapter(pipeline, files[0])
    bake_in(pipeline.unet)
    write_merged(tmp_path / "merged", read_adapter(files[0]), None, torch.float32)
    again = load_sdxl(str(tmp_path / "merged"))
    for name, tensor in again.unet.state_dict().items():
        torch.testing.assert_close(tensor, pipeline.unet.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_change_that_does_not_fit_the_base_is_one_sentence(files, tmp_path):
    tensors = load_file(files[0])
    for key in tensors:
        if key.endswith("alpha"):
            continue
        wrong = tensors | {key: torch.cat([tensors[key]] * 2, -1).contiguous()}
        save_file(wrong, tmp_path / "x.safetensors")
        pipeline = load_sdxl()
        with pytest.raises(ConfigError, match="fit"):
            load_adapter(pipeline, tmp_path / "x.safetensors")
        assert "adapters" not in vars(pipeline.unet)


# ----- hostile files


@pytest.mark.parametrize(
    "pattern", [r"(a+)+b", r"(a|a)*b", "a.*b.*c.*d.*", "(" * 50, r"(?=a)b", r"\w{9}" * 9]
)
def test_patterns_of_files_take_bounded_time(pattern):
    with pytest.raises(ConfigError, match="pattern"):
        check_bounded(pattern)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (Q, True),
        ("attn1.to_q", True),
        (r"^mid_block\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q", True),
        (r".*\.to_q", True),
        (r"(attn1|attn2)\.to_q", True),
        (r"mid_block.*\d+.attn1.to_q", True),
        ("to_k", False),
        ("attn1", False),
    ],
)
def test_patterns_mean_what_they_mean_in_peft(pattern, matches):
    from peft.utils.other import get_pattern_key

    assert (get_pattern_key([pattern], Q) == pattern) == matches
    assert pattern_value({pattern: 3}, Q, 7) == (3 if matches else 7)


def corrupted(data: bytes, random_: random.Random) -> bytes:
    """The file with some bytes changed, cut, doubled or moved; half of the changes are in the header."""
    changed = bytearray(data)
    limit = 8 + int.from_bytes(data[:8], "little") if random_.random() < 0.5 else len(data)
    for _ in range(random_.choice((1, 1, 2, 8))):
        place = random_.randrange(limit)
        way = random_.randrange(4)
        if way == 0:
            changed[place] = random_.randrange(256)
        elif way == 1:
            del changed[place : place + random_.randrange(1, 40)]
        elif way == 2:
            changed[place:place] = changed[place : place + random_.randrange(1, 40)]
        else:
            changed[place : place + 4] = random_.randbytes(4)
        limit = min(limit, len(changed))
    return bytes(changed)


def test_corrupted_files_are_one_sentence_or_read(files, tmp_path):
    """100 random corruptions of each: ConfigError, or an adapter whose changes are finite numbers."""
    random_ = random.Random(0)
    refused = []
    for i in range(200):
        file = tmp_path / "x.safetensors"
        file.write_bytes(corrupted(files[i % 2].read_bytes(), random_))
        try:
            adapter = read_adapter(file)
        except ConfigError as error:
            refused.append(str(error))
        else:
            assert adapter.components
    assert len(refused) > 100
    assert not any("\n" in sentence for sentence in refused)


def test_the_command_refuses_a_pickle_in_one_sentence(tmp_path):
    import subprocess

    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    command = [*GRALORA, "convert", "x.pt", "y.safetensors", "--to", "comfyui"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "is a pickle" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "y.safetensors").exists()


TALL = {
    f"{KOHYA_Q}.lora_down.weight": torch.ones(1, 2**20),
    f"{KOHYA_Q}.lora_mid.weight": torch.ones(2**20, 1),
    f"{KOHYA_Q}.lora_up.weight": torch.ones(1, 2**20),
}
KOHYA_CONV = "lora_unet_" + CONV.replace(".", "_")
CROOKED = {  # {what is wrong: (tensors, words of the sentence)}
    "a norm's change on a weight": ({f"{KOHYA_Q}.diff": torch.ones(64)}, "fit"),
    "one number on a weight": ({f"{KOHYA_Q}.diff": torch.ones(())}, "fit"),
    "a kernel of another size": (
        {
            f"{KOHYA_CONV}.lora_down.weight": torch.ones(2, 36, 1, 1),
            f"{KOHYA_CONV}.lora_up.weight": torch.ones(8, 2),
        },
        "kernel of 3 x 3",
    ),
    "no kernel at all": ({f"{KOHYA_CONV}.diff": torch.ones(8, 10)}, "kernel of 3 x 3"),
    "factors that are too large": (TALL, "too large|fit"),
    "a magnitude without a weight": (
        {f"{KOHYA_Q}.dora_scale": torch.ones(8, 1), f"{KOHYA_Q}.diff_b": torch.ones(8)},
        "holds no tensor of a weight",
    ),
    "a scalar": ({f"{KOHYA_Q}.scalar": torch.ones(1), f"{KOHYA_Q}.diff_b": torch.ones(8)}, "scalar"),
    "a bias of no LoRA": (
        {f"{KOHYA_Q}.diff": torch.ones(8, 8), f"unet.{Q}.lora_B.bias": torch.ones(8)},
        "bias of lora_B",
    ),
    "a long name": ({f"lora_unet_{'a' * 20_000}.diff": torch.ones(1)}, "characters"),
    "a layer that SDXL does not have": (
        {"unet.down_blocks.99.resnets.0.conv1.diff": torch.ones(1)},
        "no such",
    ),
    "complex numbers": ({f"{KOHYA_Q}.alpha": torch.ones((), dtype=torch.complex64)}, "complex64"),
}


@pytest.mark.parametrize("what", CROOKED)
def test_crooked_files_are_one_sentence(what, tmp_path):
    tensors, words = CROOKED[what]
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=words):
        read_adapter(tmp_path / "x.safetensors")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    """640 is 80 02 00 00 in little endian, as files of torch.save begin."""
    down, up = pair()
    tensors = {f"{KOHYA_Q}.lora_down.weight": down, f"{KOHYA_Q}.lora_up.weight": up}
    for length in range(200, 700):
        save_file(tensors, tmp_path / "x.safetensors", {"a": "x" * length})
        if (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    assert (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert read_adapter(tmp_path / "x.safetensors").components == ["unet"]


@pytest.mark.parametrize("narrow", [0, 1], ids=["down", "up"])
def test_factors_of_different_precisions_are_read(narrow, tmp_path):
    factors = list(pair())
    factors[narrow] = factors[narrow].to(torch.float8_e4m3fn)
    save_file(dict(zip(NAMES["kohya"], factors, strict=True)), tmp_path / "x.safetensors")
    down, up = read_adapter(tmp_path / "x.safetensors").low_rank("unet", Q)
    torch.testing.assert_close(up @ down, factors[1].float() @ factors[0].float())


def test_two_folders_of_one_model_are_refused(unet, tmp_path):
    model = UNet2DConditionModel.from_config(unet.config)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=[Q]))
    model.save_pretrained(tmp_path / "x")
    model.save_pretrained(tmp_path / "x" / "unet")
    with pytest.raises(ConfigError, match="second folder for unet"):
        read_adapter(tmp_path / "x")


def test_sums_with_kinds_that_need_the_base(files, unet, tmp_path):
    """At half strength and twice, a file of many kinds is merged as it is once at full strength."""
    once, twice = read_adapter(files[0]), summed([Weighted(read_adapter(files[0]), 0.5)] * 2)
    write_merged(tmp_path / "once", once, None, torch.float32)
    write_merged(tmp_path / "twice", twice, None, torch.float32)
    first, second = (load_sdxl(str(tmp_path / name)).unet.state_dict() for name in ("once", "twice"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)
    weights = unet.state_dict()
    exact = nearest(twice, 64, base=lambda _, name: weights[name])
    assert exact.error < 0.2
    assert {name.rpartition(".")[2] for name in exact.left_out} == {"weight", "bias"}


def test_an_adapter_of_norms_alone_is_no_lora(tmp_path):
    key = "lora_unet_" + NORM.replace(".", "_")
    save_file({f"{key}.w_norm": torch.ones(8)}, tmp_path / "x.safetensors")
    for convert in (as_lora, nearest):
        with pytest.raises(ConfigError, match="it cannot be converted to a LoRA"):
            convert(read_adapter(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("first_stage_model.decoder.conv_in.weight", "is a whole checkpoint; `gralora extract` makes"),
        ("conv_out.bias", "is a whole UNet; `gralora extract` makes"),
        ("model.diffusion_model.out.2.bias", "is a whole UNet"),
        ("image_proj.proj.weight", "is an IP-Adapter"),
        ("lora_controlnet", "is a Control-LoRA"),
        ("lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight", "is a ControlNet-LLLite"),
        ("lora_te3_encoder_block_0.lora_down.weight", "Flux or Stable Diffusion 3"),
        ("transformer_blocks.0.attn.to_q.lora_A.weight", "Flux or Stable Diffusion 3"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "a video model such as Wan"),
    ],
)
def test_what_is_no_adapter_of_sdxl_says_what_it_is(key, words, tmp_path):
    save_file({key: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=words):
        read_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "own"),
    [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")],
)
def test_text_encoders_of_diffusers_of_2023(name, own, tmp_path):
    down, up = pair()
    layer = f"text_encoder.text_model.encoder.layers.3.self_attn.{name}_lora"
    save_file({f"{layer}.down.weight": down, f"{layer}.up.weight": up}, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert list(adapter.layers["text_encoder"]) == [f"text_model.encoder.layers.3.self_attn.{own}"]


def test_a_bias_of_lora_up_in_kohyas_names_is_read(tmp_path):
    down, up = pair()
    tensors = {f"{KOHYA_Q}.lora_down.weight": down, f"{KOHYA_Q}.lora_up.weight": up}
    tensors |= {f"{KOHYA_Q}.lora_up.bias": torch.ones(64), f"{KOHYA_Q}.alpha": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = {name: delta for _, name, delta in read_adapter(tmp_path / "x.safetensors").changes()}
    torch.testing.assert_close(found[f"{Q}.bias"].delta(), torch.full((64,), 0.5))
    torch.testing.assert_close(found[f"{Q}.weight"].delta(), up @ down / 2)
