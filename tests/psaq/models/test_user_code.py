"""``FILE.py:FUNCTION``: what it builds, and whose error it is."""

import pytest
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.models.zoo import load_model, named_source

FILE = """
from dataclasses import dataclass
from neighbour import WIDTH
from torch import nn

@dataclass
class Size:
    width: int = WIDTH

def build(width: int = Size().width):
    return nn.Linear(width, 2)

def wrapped():
    return nn.DataParallel(build())

def needy(width): return nn.Linear(width, 2)
def wrong(): return "a model"
def broken():
    return nn.Linear("a", 2)
def ends(): raise SystemExit(3)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path / "own.py"


def test_the_functions_module_is_the_model(file):
    model = load_model(f"{file}:build")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5
    assert not model.training


def test_options_go_to_the_function_and_wrappers_are_opened(file):
    assert load_model(f"{file}:build", width=3).in_features == 3
    assert isinstance(load_model(f"{file}:wrapped"), nn.Linear)


def test_weights_are_loaded_into_it(file, tmp_path):
    torch.save({"weight": torch.ones(2, 5), "bias": torch.zeros(2)}, tmp_path / "weights.pth")
    assert load_model(f"{file}:build", tmp_path / "weights.pth").weight.eq(1).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "has no function 'absent'; its functions are build, wrapped, needy, wrong, broken, ends"),
        ("needy", r"cannot be called with no arguments \(missing a required argument: 'width'\)"),
        ("wrong", "returns a str; it must return a torch.nn.Module"),
        ("broken", r"own\.py: line 19: TypeError.*mend the file"),
        ("ends", r"own\.py: line 20: SystemExit: 3"),
    ],
)
def test_what_goes_wrong_is_named(file, function, message):
    with pytest.raises(PsaqError, match=message):
        load_model(f"{file}:{function}")


def test_an_option_it_does_not_take_is_named(file):
    with pytest.raises(PsaqError, match=r"cannot be called with num_classes"):
        load_model(f"{file}:build", num_classes=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1\nimport no_such_module\n", "line 2: ModuleNotFoundError"), ("def build(:\n", "SyntaxError")],
)
def test_a_file_that_does_not_run_is_named(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(PsaqError, match=rf"bad\.py: {message}"):
        load_model(f"{tmp_path}/bad.py:build")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PsaqError, match=r"there is no file nowhere\.py; name it as FILE\.py:FUNCTION"):
        load_model("nowhere.py:build")


def test_a_function_has_no_name_to_build_from():
    with pytest.raises(PsaqError, match="load it instead"):
        named_source("own.py:build")
