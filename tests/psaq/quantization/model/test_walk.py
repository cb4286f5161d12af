"""Walking block by block: the inputs are those of a whole forward pass, and nothing finished runs again."""

from collections import Counter

import pytest
import torch
from dense_makes import dense_model
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq.quantization.model.conversion import converted
from psaq.quantization.model.walk import Blocks, Walk, blocks
from psaq.quantization.passes.in_order import point_calls


def copied(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    return converted(model, torch.zeros(1, 3, 32, 32) if images is None else images)[0]


def walk_of(model: nn.Module, batches: list[Tensor]) -> Walk:
    return Walk(model, batches, blocks(model, batches[0]))


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def whole_pass(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """What each module is called with in an ordinary forward pass."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


def unfinished_layers(names: list[str], finished: list[str]) -> list[str]:
    """Layers behind the last finished block."""
    last = max(index for index, name in enumerate(names) if name.startswith(f"{finished[-1]}."))
    return names[last + 1 :]


@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_are_those_of_a_whole_pass(variant):
    images = images_for(variant)
    model, batches = copied(build(variant), images), list(images.split(2))
    walk = walk_of(model, batches)
    expected = [whole_pass(model, layers(model), batch) for batch in batches]
    left, finished = layers(model), []
    assert len(walk.blocks.names) == (4 if "swin" in variant else 2)
    for block in walk.blocks.names:
        for name in left:
            for found, wanted in zip(walk.inputs(name), expected, strict=True):
                assert torch.equal(found, wanted[name]), name
        walk.finish(block)
        finished.append(block)
        left = unfinished_layers(layers(model), finished)
    for name in left:
        assert all(torch.equal(x, e[name]) for x, e in zip(walk.inputs(name), expected, strict=True)), name


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_finished_block_does_not_run_again(name, request):
    model, runs = copied(request.getfixturevalue(name)), Counter[str]()
    walk = walk_of(model, [torch.randn(2, 3, 32, 32)])
    order = walk.blocks.names
    for block in order:
        model.get_submodule(f"{block}.mlp").register_forward_hook(lambda *_, block=block: runs.update([block]))
    for block in order:
        walk.finish(block)
    list(walk.inputs("head.fc" if name == "swin" else "head"))
    assert runs == dict.fromkeys(order, 1)


def test_nothing_behind_a_module_runs(vit):
    ran, model = [], copied(vit)
    walk = walk_of(model, [torch.randn(1, 3, 32, 32)] * 3)
    for name in ("blocks.0.mlp", "blocks.1", "head"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    list(walk.inputs("blocks.0.mlp"))
    assert ran == []
    walk.finish("blocks.0")
    assert ran == ["blocks.0.mlp"] * 3


@torch.no_grad()
def test_a_finished_layer_runs_once_more_until_its_block_is_finished(vit):
    model, batches = copied(vit), [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32, 32)]
    walk, ran = walk_of(model, batches), Counter[str]()
    layers = ("patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1")
    expected = [whole_pass(model, ["blocks.0.mlp.fc2", "head"], batch) for batch in batches]
    for name in layers:
        model.get_submodule(f"{name}.input").register_forward_hook(lambda *_, name=name: ran.update([name]))
    for name in layers[:2]:
        walk.finish_layer(name)
    for _ in range(3):
        for found, wanted in zip(walk.inputs("blocks.0.mlp.fc2"), expected, strict=True):
            assert torch.equal(found, wanted["blocks.0.mlp.fc2"])
    assert ran == {"patch_embed.proj": 2, "blocks.0.attn.qkv": 2, "blocks.0.mlp.fc1": 6}
    for block in walk.blocks.names:
        walk.finish(block)
    for found, wanted in zip(walk.inputs("head"), expected, strict=True):
        assert torch.equal(found, wanted["head"])
    assert ran == {"patch_embed.proj": 2, "blocks.0.attn.qkv": 2, "blocks.0.mlp.fc1": 8}


class Inplace(nn.Module):
    """Writes over what its layers and blocks emit."""

    num_classes, image_size = 4, 32

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)])
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).relu_().flatten(2).mT.add_(1)
        return self.head(self.blocks[0](x).mul_(2).mean(1))


def test_a_blocks_own_forward_comes_back(vit):
    model, calls = copied(vit), []

    def own(x: Tensor) -> Tensor:
        calls.append(x)
        return type(model.blocks[0]).forward(model.blocks[0], x)

    model.blocks[0].forward = own
    walk = walk_of(model, [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))])
    assert walk.blocks.names == ("blocks.0", "blocks.1")
    assert vars(model.blocks[0])["forward"] is own
    assert "forward" not in vars(model.blocks[1])
    before = len(calls)
    walk.finish("blocks.0")
    assert len(calls) == before + 1


@torch.no_grad()
def test_what_is_kept_is_not_written_over():
    torch.manual_seed(0)
    model, images = copied(Inplace().eval()), torch.randn(2, 3, 32, 32)
    walk, wanted = walk_of(model, [images]), whole_pass(model, ["blocks.0.linear2", "head"], images)
    walk.finish_layer("embed")
    for _ in range(3):
        assert torch.equal(next(walk.inputs("blocks.0.linear2")), wanted["blocks.0.linear2"])
    walk.finish("blocks.0")
    for _ in range(2):
        assert torch.equal(next(walk.inputs("head")), wanted["head"])


@torch.no_grad()
def test_a_layer_that_a_pass_calls_twice_is_not_kept(vit):
    model, images = copied(vit), torch.randn(1, 3, 32, 32)
    walk = Walk(model, [images], blocks(model, images), {"blocks.0.mlp.fc1": 2})
    walk.finish_layer("blocks.0.mlp.fc1")
    list(walk.inputs("blocks.1"))
    nn.init.zeros_(model.blocks[0].mlp.fc1.weight)
    assert torch.equal(next(walk.inputs("blocks.1")), whole_pass(model, ["blocks.1"], images)["blocks.1"])


def test_what_changes_behind_a_finished_block_is_seen(vit):
    model = copied(vit)
    walk = walk_of(model, [torch.randn(1, 3, 32, 32)])
    walk.finish("blocks.0")
    (before,) = walk.inputs("blocks.1.mlp")
    nn.init.zeros_(model.blocks[0].mlp.fc1.weight)
    assert torch.equal(next(walk.inputs("blocks.1.mlp")), before), "a finished block stays as it was"
    nn.init.ones_(model.blocks[1].attn.proj.bias)
    assert not torch.equal(next(walk.inputs("blocks.1.mlp")), before)


def assert_untouched(model: nn.Module, output: Tensor, images: Tensor) -> None:
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(images), output)


@torch.no_grad()
def test_the_model_is_left_as_it_was(swin):
    model, images = copied(swin), torch.randn(2, 3, 32, 32)
    output = model(images)
    walk = walk_of(model, [images])
    for block in walk.blocks.names[:3]:
        walk.finish(block)
    list(walk.inputs("layers.1.blocks.1.mlp.fc2"))
    assert_untouched(model, output, images)


@torch.no_grad()
def test_the_model_is_left_as_it_was_after_an_error(vit):
    model, images = copied(vit), torch.randn(2, 3, 32, 32)
    output = model(images)
    walk = walk_of(model, [images])
    walk.finish("blocks.0")

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.blocks[1].attn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(walk.inputs("head"))
    with pytest.raises(RuntimeError, match="out of memory"):
        walk.finish("blocks.1")
    handle.remove()
    assert_untouched(model, output, images)


def test_blocks_come_in_their_order(vit, swin):
    images = torch.randn(1, 3, 32, 32)
    assert blocks(copied(vit), images) == Blocks(("blocks.0", "blocks.1"), (1, 1), in_a_row=2)
    order = tuple(f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1))
    assert blocks(copied(swin), images) == Blocks(order, (1, 1, 1, 1), in_a_row=4)


def test_blocks_that_others_read_from_are_each_kept(vit):
    """The second block's tokens are not all that is needed of the first: the head sees both."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.blocks, self.head = vit.patch_embed, vit.blocks, vit.head

        def forward(self, images: Tensor) -> Tensor:
            first = self.blocks[0](self.embed(images))
            return self.head((first + self.blocks[1](first)).mean(1))

    model, images = copied(Both()), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    walk = walk_of(model, [images])
    assert walk.blocks == Blocks(("blocks.0", "blocks.1"), (1, 1), in_a_row=1)
    expected = whole_pass(model, ["head", "blocks.1.mlp"], images)
    for block in walk.blocks.names:
        walk.finish(block)
        if block == "blocks.0":
            assert torch.equal(next(walk.inputs("blocks.1.mlp")), expected["blocks.1.mlp"])
    assert torch.equal(next(walk.inputs("head")), expected["head"])


@torch.no_grad()
def test_a_block_that_runs_twice_answers_twice(vit):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.blocks, self.head = vit.patch_embed, vit.blocks, vit.head

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.blocks[1](self.blocks[0](self.blocks[0](self.embed(images)))).mean(1))

    model, images = copied(Twice()), torch.randn(2, 3, 32, 32)
    walk = walk_of(model, [images])
    assert walk.blocks == Blocks(("blocks.0", "blocks.1"), (2, 1), in_a_row=2)
    wanted = whole_pass(model, ["head"], images)
    walk.finish("blocks.0")
    assert torch.equal(next(walk.inputs("head")), wanted["head"])


class Levels(nn.Module):
    """A head that is asked once for every level of a pyramid."""

    num_classes, image_size = 4, 32

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)])
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks[0](self.embed(images).flatten(2).mT)
        return torch.stack([self.head(x[:, :: 2**level]).mean(1) for level in range(3)]).mean(0)


@torch.no_grad()
def test_a_heads_layers_are_calibrated_on_every_level_and_kept():
    torch.manual_seed(0)
    model, batches = copied(Levels().eval()), list(torch.randn(3, 3, 32, 32).split(2))
    known = blocks(model, batches[0][:1])
    assert known == Blocks(("blocks.0", "head.0", "head.2"), (1, 3, 3), in_a_row=3)
    walk, ran = Walk(model, batches, known, {"head.2.input": 3}), []
    before = list(walk.inputs("head.2.input"))
    assert [tuple(x.shape) for x in before] == [(n, 64 // 2**level, 16) for n in (2, 1) for level in range(3)]
    for block in known.names[:2]:
        walk.finish(block)
    model.head[0].input.register_forward_hook(lambda *_: ran.append("head.0"))
    model.blocks[0].norm1.register_forward_hook(lambda *_: ran.append("blocks.0"))
    after = list(walk.inputs("head.2.input"))
    assert all(torch.equal(x, wanted) for x, wanted in zip(after, before, strict=True))
    assert ran == []


class OneByOne(Levels):
    """A head that is asked once for every image."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks[0](self.embed(images).flatten(2).mT)
        return torch.stack([self.head(tokens).mean(0) for tokens in x])


@torch.no_grad()
def test_a_head_that_is_asked_image_by_image_is_calibrated_on_all_of_them():
    torch.manual_seed(0)
    model, images = copied(OneByOne().eval()), torch.randn(5, 3, 32, 32)
    walk = Walk(model, [images], blocks(model, images), point_calls(model, ["head.0.input", "head.2.input"], images))
    assert walk.blocks == Blocks(("blocks.0",), (1,), in_a_row=1)
    walk.finish("blocks.0")
    assert len(list(walk.inputs("head.2.input"))) == 5


class Branches(nn.Module):
    """Blocks in a row, all of which a neck of numbered layers reads."""

    num_classes, image_size = 4, 32

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.neck = nn.ModuleList([nn.Linear(48, 16), nn.Linear(16, 4)])

    def forward(self, images: Tensor) -> Tensor:
        x, kept = self.embed(images).flatten(2).mT, []
        for block in self.blocks:
            x = block(x)
            kept.append(x)
        return self.neck[1](self.neck[0](torch.cat(kept, -1))).mean(1)


@torch.no_grad()
def test_blocks_that_a_neck_reads_are_all_kept():
    torch.manual_seed(0)
    model, images = copied(Branches().eval()), torch.randn(2, 3, 32, 32)
    walk = walk_of(model, [images])
    assert walk.blocks.in_a_row == 1, "the first alone"
    wanted = whole_pass(model, ["neck.0", "neck.1"], images)
    for block in walk.blocks.names[:3]:
        walk.finish(block)
        assert torch.equal(next(iter(walk.inputs("neck.0"))), wanted["neck.0"])


def test_a_detector_that_finds_nothing_keeps_what_its_neck_reads():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    finds_all, finds_none = dense_model("Swin FCOS"), dense_model("Swin FCOS")
    finds_none.score_thresh = 2.0
    found, wanted = (blocks(copied(model, images), images) for model in (finds_none, finds_all))
    assert found == wanted
    assert found.in_a_row < len(found.names)
