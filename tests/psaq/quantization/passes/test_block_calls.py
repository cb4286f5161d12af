"""A block's arguments by image: what each image has, what all share, and what cannot be told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from psaq import Recipe, left_out, quantize
from psaq.quantization.model.walk import Arguments, Blocks, Walk
from psaq.quantization.passes import in_order
from psaq.quantization.passes.block_calls import block_calls

WINDOWS, TOKENS, CHANNELS = 4, 3, 2


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return args[0]


class Caller(nn.Module):
    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.block, self.call = Block(), call

    def forward(self, images: Tensor) -> Tensor:
        return self.call(self.block, images)


def windows(x: Tensor) -> Tensor:
    return x.flatten(1)[:, : WINDOWS * TOKENS * CHANNELS].reshape(-1, TOKENS, CHANNELS)


def of_windows(block: nn.Module, x: Tensor) -> Tensor:
    # as many positions as there are images in the batches below
    return block(windows(x), torch.arange(12).reshape(6, 2), memory=(x.mean((2, 3)), None), causal=False)


def walked(call: Callable[[nn.Module, Tensor], Tensor], *batches: Tensor) -> Walk:
    return Walk(Caller(call), list(batches), Blocks((), (), 0))


def flat(call: Arguments) -> list[Any]:
    return torch.utils._pytree.tree_leaves(call)


@pytest.mark.parametrize("sizes", [(6,), (6, 6), (6, 5, 1)], ids=str)
def test_any_images_have_what_a_pass_of_them_alone_has(sizes: tuple[int, ...]) -> None:
    batches = [images(size, seed) for seed, size in enumerate(sizes)]
    calls = block_calls(walked(of_windows, *batches), "block")
    assert calls is not None
    chosen = torch.tensor([4, 0, 2])
    (wanted,) = walked(of_windows, torch.cat(batches)[chosen]).arguments("block")
    found = calls.of(chosen)
    assert found[1].keys() == wanted[1].keys() == {"memory", "causal"}
    for one, other in zip(flat(found), flat(wanted), strict=True):
        assert torch.equal(one, other) if isinstance(other, Tensor) else one is other


@pytest.mark.parametrize(
    "call",
    [
        lambda block, x: block(windows(x).transpose(0, 1)),
        lambda block, x: block(windows(x), len(x)),
        lambda block, x: block(windows(x), x.amax()),
        lambda block, x: block(windows(x).unflatten(0, (-1, WINDOWS)).transpose(0, 1).flatten(0, 1)),
        lambda block, x: block(torch.zeros(6, 2)),
    ],
    ids=["tokens first", "the number of images", "something of the batch", "windows first", "nothing of the images"],
)
def test_what_cannot_be_told_apart_is_left(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert block_calls(walked(call, images(4, 1), images(4, 2)), "block") is None


def rotary() -> nn.Module:
    torch.manual_seed(0)
    model = Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, use_rot_pos_emb=True)
    return model.eval()


def pictures() -> Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_blocks_are_trained_with_their_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = rotary(), []
    trained = in_order.reconstruct

    @torch.no_grad()
    def error(block: nn.Module, calls: Any, outputs: Tensor) -> float:
        args, kwargs = calls.of(torch.arange(len(outputs)))
        return float((block(*args, **kwargs) - outputs.flatten(0, 1)).square().mean())

    def watched(block: nn.Module, calls: Any, outputs: Tensor, steps: int, name: str) -> None:
        seen.append((name, "rope" in calls.of(torch.arange(1))[1]))
        before = error(block, calls, outputs)
        trained(block, calls, outputs, steps, name)
        assert error(block, calls, outputs) < before

    monkeypatch.setattr(in_order, "reconstruct", watched)
    qmodel = quantize(model, pictures(), Recipe.accurate(3, 4, reconstruction_steps=30))
    assert seen == [("blocks.0", True), ("blocks.1", True)]
    assert in_order.UNTRAINED not in left_out(qmodel)


class TokensFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).permute(2, 0, 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(0))


def test_blocks_that_cannot_be_trained_are_named() -> None:
    recipe = Recipe.accurate(3, 4, reconstruction_steps=2)
    reason = left_out(quantize(TokensFirst().eval(), pictures(), recipe))[in_order.UNTRAINED]
    assert reason.startswith("blocks.0, blocks.1: they run several times in a pass, or with what")


class Twice(TokensFirst):
    """Its only block runs twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)])

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        return self.head(self.blocks[0](self.blocks[0](tokens)).mean(1))


def test_blocks_that_run_twice_are_left_as_they_are() -> None:
    recipes = [Recipe.accurate(4, 4, reconstruction_steps=steps) for steps in (0, 2)]
    plain, trained = (quantize(Twice().eval(), pictures(), recipe) for recipe in recipes)
    others = trained.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in plain.state_dict().items())
    assert left_out(trained)[in_order.UNTRAINED].startswith("blocks.0: they run several times in a pass")
