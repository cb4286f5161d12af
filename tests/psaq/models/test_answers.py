"""One row of numbers for each image, whatever a model gives."""

import torch
from makes import images_for, made
from torch import Tensor, nn

from psaq.models.answers import Answering, head_layers
from psaq.models.trace import trace
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


class Boxes(nn.Module):
    """A detector as torchvision's are called: it takes a list and gives as many boxes as it pleases."""

    image_size = 32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.attention = nn.Conv2d(3, 16, 8, 8), nn.MultiheadAttention(16, 2, batch_first=True)
        self.scores, self.corners = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        x = self.embed(torch.stack(images)).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        scores, corners = self.scores(x), self.corners(x)
        chosen = scores.amax(-1) > 0.2
        return [{"boxes": c[k], "scores": s[k]} for s, c, k in zip(scores, corners, chosen, strict=True)]


def test_a_classifier_answers_with_its_logits():
    model = made("own: fused")
    images = images_for(model)
    assert torch.equal(Answering(model)(images), model(images))
    assert Answering(model).has_classes


@torch.no_grad()
def test_an_output_of_many_parts_is_laid_out_in_a_row():
    model = made("transformers: YOLOS")
    images = images_for(model)
    output = model(images)
    parts = [output.logits, output.pred_boxes, output.last_hidden_state]
    torch.testing.assert_close(Answering(model)(images), torch.cat([part.flatten(1) for part in parts], 1))
    assert not Answering(model).has_classes


@torch.no_grad()
def test_a_detector_answers_with_its_heads():
    model = Boxes().eval()
    images = images_for(model)
    assert set(head_layers(trace(model, images))) == {"scores", "corners"}
    answers = Answering(model)(images)
    assert answers.shape == (3, 16 * (3 + 4))
    qmodel = quantize(model, images, Recipe.accurate(8, 8, flat_copies=0))
    quantised = Answering(qmodel)(images)
    assert 0 < float((quantised - answers).norm() / answers.norm()) < 0.1
    assert torch.equal(Answering(deploy(qmodel, torch.float32, "exact"))(images), quantised)


def test_one_number_for_each_image_is_an_answer():
    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3)) * self.scale

    images = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Answering(Score())(images), images.mean((1, 2, 3))[:, None])
