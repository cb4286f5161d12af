"""Quantised models on disk: the same bits after a round trip, small, and nothing wrong passes silently."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from psaq.errors import PsaqError
from psaq.files import load_tensors, read_safetensors, save_tensors
from psaq.models.description import describe
from psaq.models.zoo import build_model, data_config, named_source
from psaq.quantization import checkpoint
from psaq.quantization.checkpoint import KIND, load, save
from psaq.quantization.model.points import live_points
from psaq.quantization.pipeline import quantize
from psaq.quantization.quantizers.affine import symmetric_per_channel
from psaq.quantization.recipes import Recipe

NAMED = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def named_vit() -> nn.Module:
    """A model that can be built again from its name."""
    torch.manual_seed(0)
    return build_model(named_source("vit_tiny_patch16_224.augreg_in21k_ft_in1k", NAMED))


@pytest.mark.parametrize("scope", ["all", "linear"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_outputs_are_the_same_bits_after_a_round_trip(named_vit, images, tmp_path, bits, scope):
    qmodel = quantize(named_vit, images, Recipe.paper(bits, 8, scope))
    save(qmodel, tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors")
    assert torch.equal(loaded(images), qmodel(images))
    assert not loaded.training
    assert loaded.psaq_recipe == Recipe.paper(bits, 8, scope)
    assert data_config(loaded) == data_config(named_vit)


def test_no_weight_is_initialised_to_be_overwritten(named_vit, images, tmp_path):
    qmodel = quantize(named_vit, images, Recipe.accurate(4, 8))
    save(qmodel, tmp_path / "q.safetensors")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with _Initialising() as initialising:
        loaded = load(tmp_path / "q.safetensors")
    assert initialising.drawn == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded(images), qmodel(images))
    with _Initialising() as initialising:
        build_model(named_source("vit_tiny_patch16_224.augreg_in21k_ft_in1k", NAMED))
    assert initialising.drawn > 0


@pytest.mark.parametrize("name", ["micro_vit", "micro_swin", "swin_tiny"])
def test_no_float_model_is_built_to_be_loaded_into(name, tmp_path, monkeypatch):
    model = build_model(named_source(name, {"img_size": 64, "window_size": 2} if name == "swin_tiny" else None))
    x = torch.randn(2, 3, *data_config(model).image_size, generator=torch.Generator().manual_seed(0))
    qmodel = quantize(model, x, Recipe.paper(8, 8))
    save(qmodel, tmp_path / "q.safetensors")
    built = []
    monkeypatch.setattr(checkpoint, "build_model", lambda source: built.append(build_model(source)) or built[-1])
    loaded = load(tmp_path / "q.safetensors")
    assert len(built) == 1
    assert all(parameter.is_meta for parameter in built[0].parameters())
    kept = dict(qmodel.named_buffers())
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, kept[name]), name
        assert buffer.dtype == kept[name].dtype
    assert torch.equal(loaded(x), qmodel(x))


def test_an_architecture_that_timm_cannot_complete_is_built_in_memory(tmp_path, monkeypatch):
    """As in versions of timm that compute a Swin's masks only while they build it."""
    model = build_model(named_source("micro_swin"))
    x = torch.randn(2, 3, *data_config(model).image_size, generator=torch.Generator().manual_seed(0))
    qmodel = quantize(model, x, Recipe.paper(8, 8))
    save(qmodel, tmp_path / "q.safetensors")
    for kind in (WindowAttention, SwinTransformerBlock):
        monkeypatch.delattr(kind, "init_non_persistent_buffers")
    assert torch.equal(load(tmp_path / "q.safetensors")(x), qmodel(x))


class _Initialising(TorchDispatchMode):
    """Counts the tensors in memory, not on the meta device, that random numbers are drawn into."""

    drawn = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        random = any(name in function.__name__ for name in ("normal", "uniform", "rand"))
        if random and isinstance(args[0], Tensor) and not args[0].is_meta:
            self.drawn += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["micro_vit", "micro_swin", "deit_tiny_distilled_patch16_224"])
def test_all_of_a_loaded_model_is_in_memory(name, tmp_path):
    model = build_model(named_source(name, {"img_size": 32, "num_classes": 10} if "distilled" in name else None))
    x = torch.randn(2, 3, *data_config(model).image_size, generator=torch.Generator().manual_seed(0))
    qmodel = quantize(model, x, Recipe.paper(4, 8))
    save(qmodel, tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors")
    everything = [*loaded.named_parameters(), *loaded.named_buffers()]
    assert not any(tensor.is_meta for _, tensor in everything)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(x), qmodel(x))
    kinds = {name: tensor.dtype for name, tensor in qmodel.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == kinds


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_a_model_of_another_type_comes_back_in_it(named_vit, images, tmp_path, dtype, bits):
    images = images.to(dtype)
    for parameter in named_vit.to(dtype).parameters():
        parameter.mul_(1 + 1e-12)  # which float64 alone can hold
    qmodel = quantize(named_vit, images, Recipe.paper(bits, 8))
    save(qmodel, tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(images), qmodel(images))
    kinds = {name: tensor.dtype for name, tensor in qmodel.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == kinds


@torch.no_grad()
def test_a_model_that_was_cast_comes_back_as_it_was(named_vit, images, tmp_path):
    qmodel = quantize(named_vit, images, Recipe.paper(4, 8)).half()
    save(qmodel, tmp_path / "q.safetensors")
    assert torch.equal(load(tmp_path / "q.safetensors")(images.half()), qmodel(images.half()))


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_module_of_ones_own_comes_back_with_its_architecture(name, images, tmp_path, request):
    model = request.getfixturevalue(name)
    qmodel = quantize(model, images, Recipe.paper(4, 8))
    save(qmodel, tmp_path / "q.safetensors")
    with pytest.raises(PsaqError, match=r"q\.safetensors.*model=module"):
        load(tmp_path / "q.safetensors")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert torch.equal(load(tmp_path / "q.safetensors", model)(images), qmodel(images))


def test_saving_what_was_loaded_writes_the_same(named_vit, images, tmp_path):
    save(quantize(named_vit, images, Recipe.paper(4, 8)), tmp_path / "one.safetensors")
    save(load(tmp_path / "one.safetensors"), tmp_path / "other.safetensors")
    (one, header), (other, other_header) = (load_tensors(tmp_path / f"{n}.safetensors", KIND) for n in ("one", "other"))
    assert header == other_header
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_training_keeps_its_result_in_a_file(named_vit, images, tmp_path):
    qmodel = quantize(named_vit, images, Recipe.paper(4, 8))
    for parameter in qmodel.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    save(qmodel, tmp_path / "q.safetensors")
    assert torch.equal(load(tmp_path / "q.safetensors")(images), qmodel(images))


@pytest.mark.parametrize(("bits", "per_byte"), [(2, 2), (4, 2), (5, 1), (8, 1)])
def test_weights_are_integers_on_disk(named_vit, images, tmp_path, bits, per_byte):
    save(quantize(named_vit, images, Recipe.paper(bits, 8)), tmp_path / "q.safetensors")
    tensors, _ = load_tensors(tmp_path / "q.safetensors", KIND)
    stored = tensors["blocks.0.mlp.fc1.weight"]
    assert stored.element_size() == 1
    assert stored.shape == (192, 48 // per_byte)
    assert tensors["patch_embed.proj.weight"].shape == (48, 3 * 8 * 8 // per_byte)


def test_the_header_says_what_the_file_is(named_vit, images, tmp_path):
    save(quantize(named_vit, images, Recipe.paper(4, 6, "matmul")), tmp_path / "q.safetensors")
    _, header = load_tensors(tmp_path / "q.safetensors", KIND)
    assert Recipe(**header["recipe"]) == Recipe.paper(4, 6, "matmul")
    assert header["model"]["architecture"] == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert header["data"]["mean"] == [0.5, 0.5, 0.5]
    assert header["points"]["head.weight_quantizer"] == {"bits": 4, "symmetric": True}
    assert header["points"]["blocks.1.attn.query"] == {"bits": 6, "symmetric": False}


def test_a_w4a8_deit_tiny_is_an_eighth_of_float32(tmp_path):
    torch.manual_seed(0)
    model = build_model(named_source("deit_tiny"))
    save(quantize(model, torch.randn(1, 3, 224, 224), Recipe.paper(4, 8)), tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").stat().st_size <= 3.6e6


@settings(deadline=None, max_examples=30)
@given(bits=st.integers(2, 8), seed=st.integers(0, 2**31), columns=st.integers(1, 9))
def test_integers_and_scales_give_the_weight_back(bits, seed, columns):
    weight = torch.randn(4, columns, generator=torch.Generator().manual_seed(seed))
    quantizer = symmetric_per_channel(weight, bits)
    on_grid = quantizer.real(quantizer.integers(weight))
    assert torch.equal(on_grid, quantizer(weight))
    assert torch.equal(quantizer(on_grid), on_grid)


def test_a_model_that_is_not_quantised_is_not_saved(vit, tmp_path):
    with pytest.raises(PsaqError, match="not quantised"):
        save(vit, tmp_path / "q.safetensors")
    assert not list(tmp_path.iterdir())


def damaged_header(path):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, tensors, KIND, {**header, "points": {"head.input": {"bits": 8}}})


def lost_tensor(path):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, {name: t for name, t in tensors.items() if name != "blocks.0.norm1.bias"}, KIND, header)


def lost_weight(path):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, {name: t for name, t in tensors.items() if name != "blocks.0.mlp.fc1.weight"}, KIND, header)


def short_weight(path):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, {**tensors, "head.weight": tensors["head.weight"][:, 1:]}, KIND, header)


def impossible_recipe(path):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, tensors, KIND, {**header, "recipe": {**header["recipe"], "weights": 1}})


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path):
    save_tensors(path, {"x": torch.zeros(1)}, "images", {})


def absent(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [damaged_header, lost_tensor, lost_weight, short_weight, impossible_recipe, truncated, foreign, absent],
)
def test_a_damaged_file_is_named(named_vit, images, tmp_path, damage):
    path = tmp_path / "q.safetensors"
    save(quantize(named_vit, images, Recipe.paper(4, 8)), path)
    damage(path)
    with pytest.raises(PsaqError, match=r"q\.safetensors"):
        load(path)


def test_another_architecture_is_refused(named_vit, swin, images, tmp_path):
    save(quantize(named_vit, images, Recipe.paper(4, 8)), tmp_path / "q.safetensors")
    with pytest.raises(PsaqError, match="does not fit SwinTransformer"):
        load(tmp_path / "q.safetensors", swin)
    wider = timm.create_model("vit_tiny_patch16_224", **{**NAMED, "embed_dim": 96})
    with pytest.raises(PsaqError, match=r"q\.safetensors.*\(48, 96\), not \(96, 96\)"):
        load(tmp_path / "q.safetensors", wider)


def test_zero_points_of_weights_take_no_room(named_vit, images, tmp_path):
    qmodel = quantize(named_vit, images, Recipe.paper(4, 8))
    save(qmodel, tmp_path / "q.safetensors")
    tensors, _ = read_safetensors(tmp_path / "q.safetensors")
    assert {name for name in tensors if name.endswith("zero_point")} == {
        f"{name}.zero_point" for name in live_points(qmodel) if not name.endswith("weight_quantizer")
    }


@torch.no_grad()
def test_wrappers_are_opened_on_both_ways(vit, images, tmp_path):
    qmodel = quantize(vit, images, Recipe.paper(4, 8))
    save(nn.DataParallel(qmodel), tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors", nn.DataParallel(vit))
    assert torch.equal(loaded(images), qmodel(images))


def test_a_loaded_model_takes_the_images_that_the_saved_one_took(vit, images, tmp_path):
    qmodel = quantize(describe(copy.deepcopy(vit), image_size=32, mean=0.25, std=0.5), images, Recipe.paper(4, 8))
    save(qmodel, tmp_path / "q.safetensors")
    assert data_config(load(tmp_path / "q.safetensors", vit)) == data_config(qmodel) != data_config(vit)
