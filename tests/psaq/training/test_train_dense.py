"""The bundled segmenter and detector are trained by a command that is kept."""

import pytest
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.files import read_json
from psaq.models.micro import MICRO_DENSE
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.training.train_dense import TrainDense, train

SHORT = {"steps": 3, "batch_size": 4, "held_out": 4}


@pytest.mark.parametrize("name", MICRO_DENSE)
def test_training_is_repeated_by_its_seed(name):
    weights = [train(TrainDense(name, **SHORT, seed=seed))[0].state_dict() for seed in (1, 1, 2)]
    one, again, other = weights
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_command_writes_weights_that_load_and_a_record(tmp_path, capsys):
    options = [f"--{option.replace('_', '-')}={value}" for option, value in SHORT.items()]
    run_command(TrainDense, ["--model=micro_segmenter", "--out", str(tmp_path), *options])
    said = capsys.readouterr().out
    assert said.startswith("micro_segmenter: mIoU")
    assert isinstance(load_model("micro_segmenter", tmp_path / "micro_segmenter.safetensors"), nn.Module)
    assert read_json(tmp_path / "micro_segmenter.json")["training"]["steps"] == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"model": "micro_vit"}, "must be micro_segmenter or micro_detector"), ({"steps": 0}, "--steps: 0 is not")],
)
def test_bad_options_are_refused(options, complaint, tmp_path):
    with pytest.raises(PsaqError, match=complaint):
        TrainDense(**{"model": "micro_segmenter", "out": tmp_path, **options}).run()
    assert not list(tmp_path.iterdir())
