"""Recording a model in a CUDA graph; the graph itself is played by a stand-in, since there is none on a CPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from psaq import PsaqError
from psaq.quantization.deployment import cuda_graph
from psaq.quantization.deployment.cuda_graph import RecordedModel


class Doubling(nn.Module):
    """Counts its runs; a graph's recording writes where the first recorded run wrote."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, images):
        self.runs += 1
        return {"logits": 2 * images}


@pytest.fixture
def recorded(monkeypatch):
    """Doubling in a graph that replays by computing anew from the recorded images into the recorded answers."""
    stream = SimpleNamespace(wait_stream=lambda other: None)

    class Graph:
        def replay(self):
            captured._answers["logits"].copy_(2 * captured._images)

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda_graph, "compile_before_use", lambda run: 0)
    captured = RecordedModel(Doubling(), torch.ones(2, 3, 4, 4))
    return captured


def test_a_replay_answers_for_the_images_given_and_never_runs_the_model(recorded):
    runs = recorded.model.runs
    first, images = recorded(torch.full((2, 3, 4, 4), 3.0)), torch.randn(2, 3, 4, 4)
    assert torch.equal(recorded(images)["logits"], 2 * images)
    assert (first["logits"] == 6).all()  # an answer is the caller's: the next replay leaves it alone
    assert recorded.model.runs == runs == cuda_graph.WARM_UP + 1


@pytest.mark.parametrize("images", [torch.zeros(3, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)])
def test_other_images_than_the_recorded_are_refused(recorded, images):
    with pytest.raises(PsaqError, match="capture it again"):
        recorded(images)
