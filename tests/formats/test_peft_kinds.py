"""PEFT's OFT, BOFT, (IA)3 and VeRA: the weights that PEFT itself merges, in float64, and what is refused."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import BOFTConfig, IA3Config, OFTConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from gralora_diffusion import load_adapter, load_sdxl, remove
from gralora_diffusion.adapters.control import merge, unmerge
from gralora_diffusion.adapters.peft_kinds import PeftBOFT, butterfly
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.read_peft import PEFT_CONFIG, PEFT_TENSORS
from gralora_diffusion.options import ConfigError

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
FF = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
CONV = "mid_block.resnets.0.conv1"
KINDS = {
    "OFT": OFTConfig(oft_block_size=8, target_modules=[Q, OUT, CONV]),
    "OFT, exact": OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=[Q]),
    "OFT, 2 terms": OFTConfig(oft_block_size=8, num_cayley_neumann_terms=2, target_modules=[Q]),
    "OFT, 3 terms": OFTConfig(oft_block_size=8, num_cayley_neumann_terms=3, target_modules=[Q]),
    "OFT, 8 terms": OFTConfig(oft_block_size=8, num_cayley_neumann_terms=8, target_modules=[Q]),
    "OFT, constrained": OFTConfig(r=4, oft_block_size=0, coft=True, eps=0.05, target_modules=[Q]),
    "OFT, constrained by a whole number": OFTConfig(
        r=4, oft_block_size=0, coft=True, eps=1, target_modules=[Q]
    ),
    "OFT, shared": OFTConfig(oft_block_size=8, block_share=True, target_modules=[Q, CONV]),
    "BOFT": BOFTConfig(boft_block_size=8, target_modules=[Q, OUT, CONV]),
    "BOFT, by number": BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=[Q]),
    "IA3": IA3Config(target_modules=[Q, OUT, FF], feedforward_modules=[FF]),
    "IA3, conv": IA3Config(target_modules=[CONV], feedforward_modules=[]),
    "IA3, conv of the inputs": IA3Config(target_modules=[CONV], feedforward_modules=[CONV]),
    "VeRA": VeraConfig(r=4, save_projection=True, target_modules=[Q, FF]),
}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return load_sdxl().unet


def made_by_peft(kind: str, unet, folder):
    """(the base's tensors, PEFT's merged ones) in float64; its folder is written."""
    model = UNet2DConditionModel.from_config(unet.config)
    model.load_state_dict(unet.state_dict())
    base = {name: tensor.double() for name, tensor in unet.state_dict().items()}
    model = get_peft_model(model, KINDS[kind]).double()
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if p.requires_grad:
            offset = 1 if "ia3_l" in name or "boft_s" in name else 0
            p.data = offset + torch.randn_like(p) * (1.0 if "vera" in name else 0.1)
    model.save_pretrained(folder)
    return base, model.merge_and_unload().state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lone", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_that_peft_merges(kind, lone, unet, tmp_path):
    base, merged = made_by_peft(kind, unet, tmp_path)
    adapter = read_adapter(tmp_path / PEFT_TENSORS if lone else tmp_path)
    found = {name: delta for _, name, delta in adapter.changes()}
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    assert set(found) == changed
    assert len(changed) >= len(KINDS[kind].target_modules)
    for name, delta in found.items():
        difference = merged[name] - base[name]
        assert difference.norm() > 1e-3
        torch.testing.assert_close(delta.applied(base[name]), difference, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["OFT", "BOFT", "IA3", "IA3, conv", "VeRA"])
def test_a_pipeline_computes_what_it_merges(kind, unet, tmp_path):
    """Unmerged, merged, at half strength and removed: weights and biases."""
    base, merged = made_by_peft(kind, unet, tmp_path)
    pipeline = load_sdxl()
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(1, unet.config.in_channels, 8, 8, generator=random)
    text = torch.randn(1, 4, unet.config.cross_attention_dim, generator=random)
    pooled = torch.randn(1, pipeline.text_encoder_2.config.projection_dim, generator=random)
    added = dict(text_embeds=pooled, time_ids=torch.full((1, 6), 64.0))

    def output(model):
        with torch.no_grad():
            return model(sample, torch.tensor([500]), text, added_cond_kwargs=added).sample

    plain = output(pipeline.unet)
    load_adapter(pipeline, tmp_path, name="x")
    own = output(pipeline.unet)
    other = UNet2DConditionModel.from_config(unet.config)
    other.load_state_dict({name: tensor.float() for name, tensor in merged.items()})
    wanted = output(other.eval())
    change = float((wanted - plain).norm())
    assert change > 1e-3
    assert float((own - wanted).norm()) < 0.01 * change
    merge(pipeline.unet)
    assert float((output(pipeline.unet) - wanted).norm()) < 0.01 * change
    for layer in adapted_layers(pipeline.unet).values():
        layer.strength = 0.5
    half = {name: (merged[name] + base[name]) / 2 for name in merged}
    other.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    assert float((output(pipeline.unet) - output(other.eval())).norm()) < 0.01 * change
    unmerge(pipeline.unet)
    remove(pipeline)
    assert torch.equal(output(pipeline.unet), plain)


def test_several_butterfly_stages_are_products_of_permuted_blocks():
    """By whole matrices as PEFT builds them, which it does only where its CUDA extension compiles."""
    torch.manual_seed(0)
    stages, count, side, m = 3, 8, 4, 6
    blocks = 0.2 * torch.randn(stages, count, side, side, dtype=torch.float64)
    s = torch.rand(m, 1, dtype=torch.float64)
    weight = torch.randn(m, count * side, dtype=torch.float64)
    whole = torch.eye(count * side, dtype=torch.float64)
    for stage in range(stages):
        Q = 0.5 * (blocks[stage] - blocks[stage].mT)
        eye = torch.eye(side, dtype=torch.float64)
        B = torch.block_diag(*[(eye - q) @ torch.linalg.inv(eye + q) for q in Q])
        P = torch.eye(count * side, dtype=torch.float64)[butterfly(32, count // 2**stage, side // 2, "cpu")]
        whole = P @ B @ P.T @ whole
    wanted = (whole @ weight.T).T * s
    delta = PeftBOFT(dict(boft_R=blocks, boft_s=s)).delta(weight)
    torch.testing.assert_close(weight + delta, wanted, rtol=0, atol=1e-10)


def test_the_order_is_pefts_own():
    layer = pytest.importorskip("peft.tuners.boft.layer").BOFTLayer
    for n, groups, chunk in ((32, 8, 2), (32, 4, 2), (32, 2, 2), (48, 2, 3), (128, 4, 4)):
        wanted = layer.block_butterfly_perm(None, n, groups, chunk, 2)
        assert torch.equal(butterfly(n, groups, chunk, "cpu"), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["OFT", "BOFT", "IA3", "VeRA"])
def test_they_are_converted_with_the_base_and_their_error(kind, unet, tmp_path):
    made_by_peft(kind, unet, tmp_path)
    adapter = read_adapter(tmp_path)
    with pytest.raises(ConfigError, match="depends on the base's weights: give the base"):
        nearest(adapter, rank=4)
    found = nearest(adapter, rank=4, base=lambda component, name: unet.state_dict()[name])
    assert found.error == pytest.approx(0, abs=1e-5) if kind == "VeRA" else 0.1 < found.error < 1


HOSTILE = [
    ("OFT", dict(num_cayley_neumann_terms=10**9), {}, "num_cayley_neumann_terms is 1000000000"),
    ("OFT", dict(num_cayley_neumann_terms="5"), {}, "num_cayley_neumann_terms is '5'"),
    ("OFT", dict(coft=True, eps="x"), {}, r"\.0: eps is 'x'; it must be a number from 0 to 1000"),
    ("OFT", dict(coft=True, eps=True), {}, "eps is True"),
    ("OFT", dict(coft=True, eps=float("nan")), {}, "eps is nan"),
    ("OFT", dict(peft_version=[1]), {}, r"peft_version is \[1\]; it must be a version"),
    ("OFT", dict(peft_version="new"), {}, "peft_version is 'new'"),
    ("OFT", dict(peft_type=["OFT"]), {}, r"of type \['OFT'\]; supported types"),
    ("OFT", dict(peft_type={}), {}, r"of type \{\}; supported types"),
    ("OFT", {}, {"oft_R.weight": torch.ones(16, 27)}, "rows of oft_R do not fit"),
    ("OFT", {}, {"oft_R.weight": torch.ones(16)}, "rows of oft_R do not fit"),
    ("OFT", dict(peft_type="BOFT"), {}, "holds oft_R; BOFT of PEFT needs boft_R and boft_s"),
    ("BOFT", {}, {"boft_R": torch.ones(1, 4, 8, 7)}, "are not square"),
    ("BOFT", {}, {"boft_R": torch.ones(20, 4, 8, 8)}, "4 blocks cannot have 20 stages"),
    ("IA3, conv", dict(feedforward_modules="(a+)+$"), {}, "feedforward_modules must be a list of names"),
    ("IA3", {}, {"ia3_l": torch.ones(3, 3)}, r"its ia3_l has the shape \[3, 3\]"),
    ("VeRA", {}, {"vera_A": torch.ones(5, 9)}, "have different ranks"),
    ("VeRA", {}, {"vera_A": None}, "save it in PEFT with save_projection=True"),
    ("VeRA", {}, {"vera_lambda_b": torch.ones(10**4)}, "vera_B has fewer rows than the layer"),
    ("VeRA", dict(peft_type="ADALORA"), {}, "of type ADALORA; supported types"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "options", "changes", "words"), HOSTILE, ids=str)
def test_hostile_folders_are_one_sentence(kind, options, changes, words, unet, tmp_path):
    made_by_peft(kind, unet, tmp_path)
    config = json.loads((tmp_path / PEFT_CONFIG).read_text())
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(config | options))
    tensors = load_file(tmp_path / PEFT_TENSORS)
    for ending, tensor in changes.items():
        name = next(name for name in tensors if name.endswith(ending))
        tensors.pop(name)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, tmp_path / PEFT_TENSORS)
    with pytest.raises(ConfigError, match=words) as caught:
        read_adapter(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("OFT", {"to_q.oft_R.weight": torch.zeros(3, 28)}),
        ("BOFT", {"to_q.boft_s": torch.ones(9, 1)}),
        ("IA3", {"to_q.ia3_l": torch.ones(9, 1)}),
        ("VeRA", {"to_q.vera_lambda_b": torch.ones(9)}),
    ],
    ids=str,
)
def test_of_another_base_they_change_nothing(kind, change, unet, tmp_path):
    made_by_peft(kind, unet, tmp_path)
    tensors = load_file(tmp_path / PEFT_TENSORS)
    for ending, tensor in change.items():
        tensors[next(name for name in tensors if name.endswith(ending))] = tensor
    save_file(tensors, tmp_path / PEFT_TENSORS)
    pipeline = load_sdxl()
    with pytest.raises(ConfigError, match="does not fit a parameter"):
        load_adapter(pipeline, tmp_path)
    assert not adapted_layers(pipeline.unet)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["OFT", "BOFT", "IA3"])
def test_a_file_without_its_config_asks_for_the_folder(kind, unet, tmp_path):
    made_by_peft(kind, unet, tmp_path)
    (tmp_path / PEFT_TENSORS).rename(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"in PEFT's adapter_config.* give the folder with both files"):
        read_adapter(tmp_path / "other.safetensors")


def edited(folder, **options) -> None:
    """Change adapter_config.json; an option of None is deleted."""
    config = json.loads((folder / PEFT_CONFIG).read_text()) | options
    config = {name: value for name, value in config.items() if value is not None}
    (folder / PEFT_CONFIG).write_text(json.dumps(config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("terms", [0, 1])
def test_oft_of_no_terms_changes_nothing_as_in_peft(terms, unet, tmp_path, monkeypatch):
    config = OFTConfig(oft_block_size=8, num_cayley_neumann_terms=terms, target_modules=[Q])
    monkeypatch.setitem(KINDS, "no terms", config)
    base, merged = made_by_peft("no terms", unet, tmp_path)
    assert torch.equal(merged[f"{Q}.weight"], base[f"{Q}.weight"])
    ((_, name, delta),) = read_adapter(tmp_path).changes()
    assert not delta.applied(base[name]).any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", [None, "0.17.1", "0.16.0.dev0@abc"])
@pytest.mark.parametrize("terms", [2, 3, 5])
def test_oft_of_peft_before_0_18_has_its_own_last_term(terms, version, unet, tmp_path):
    """By _cayley_batch() of PEFT 0.17.1: I + 2 Q + ... + 2 Q^(terms - 1); the config has no peft_version."""
    base = made_by_peft("OFT", unet, tmp_path)[0]
    edited(tmp_path, peft_version=version, num_cayley_neumann_terms=terms)
    tensors = load_file(tmp_path / PEFT_TENSORS)
    found = {name: delta for _, name, delta in read_adapter(tmp_path).changes()}
    triangles = next(t for name, t in tensors.items() if f"{Q}.oft_R" in name).double()
    Q_skew = triangles.new_zeros(len(triangles), 8, 8)
    rows, columns = torch.triu_indices(8, 8, 1)
    Q_skew[:, rows, columns] = triangles
    Q_skew = Q_skew - Q_skew.mT
    R = torch.eye(8, dtype=torch.float64) + sum(
        2 * torch.linalg.matrix_power(Q_skew, power) for power in range(1, terms)
    )
    weight = base[f"{Q}.weight"]
    wanted = weight @ torch.block_diag(*R).mT
    torch.testing.assert_close(found[f"{Q}.weight"].applied(weight), wanted - weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [["OFT"], {}, 5, None])
def test_a_header_with_another_type_is_one_sentence(kind, tmp_path):
    tensors = {f"unet.{Q}.lora_A.weight": torch.ones(2, 32), f"unet.{Q}.lora_B.weight": torch.ones(32, 2)}
    header = {"unet.peft_type": kind, "unet.r": 3, "unet.lora_alpha": 2}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    with pytest.raises(ConfigError, match="the header says rank 3, and the tensors have 2"):
        read_adapter(tmp_path / "x.safetensors")
