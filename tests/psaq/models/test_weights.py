"""Weights as they lie about: nested, prefixed, pickled, damaged, evil."""

import argparse
import contextlib
import os
import pickle

import pytest
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.models.weights import load_weights


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return Own()


def _prefixed(model, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_loads(trained, tmp_path, ending, zipped, capsys):
    path = tmp_path / f"weights{ending}"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert _same(load_weights(Own(), path), trained)
    assert capsys.readouterr().err == "", "nothing but the weights themselves was taken"


@pytest.mark.parametrize(
    ("wrap", "prefix", "said"),
    [
        (lambda weights: {"model": weights, "epoch": 3}, "", "took entry model"),
        (
            lambda weights: {"state_dict_ema": weights},
            "module.",
            "entry state_dict_ema, names without their prefix 'module.'",
        ),
        (lambda weights: {"teacher": {"backbone": weights}}, "", "took entry teacher.backbone"),
        (
            lambda weights: weights,
            "module.backbone.",
            "took the weights, names without their prefix 'module.backbone.'",
        ),
        (lambda weights: weights, "_orig_mod.", "'_orig_mod.'"),
        (lambda weights: weights, "model.encoder.", "'model.encoder.'"),
        (lambda weights: {"model": weights, "args": argparse.Namespace(lr=0.1)}, "", "took entry model"),
    ],
)
def test_entries_and_prefixes_are_found_and_named(trained, tmp_path, capsys, wrap, prefix, said):
    path = tmp_path / "weights.pth"
    torch.save(wrap(_prefixed(trained, prefix)), path)
    assert _same(load_weights(Own(), path), trained)
    assert said in capsys.readouterr().err


def test_an_entry_wins_in_the_stated_order(trained, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict_ema": Own().state_dict(), "state_dict": trained.state_dict()}, path)
    assert _same(load_weights(Own(), path), trained)


def _plainly(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


class _Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("save", [torch.save, _plainly])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(trained, tmp_path, save):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    save({"extra": _Evil(trace), "model": trained.state_dict()}, path)
    with pytest.raises(
        PsaqError, match=r"evil\.pth: is no plain file of weights, it asks for \w+\.mkdir.*nothing of it"
    ):
        load_weights(Own(), path)
    assert not trace.exists()
    with contextlib.suppress(RuntimeError):  # a bare pickle has run before torch finds it to be none of its own
        torch.load(path, weights_only=False)
    assert trace.exists(), "read in the trusting way, the same file does run code"


def test_a_whole_model_is_refused(trained, tmp_path):
    torch.save(trained, tmp_path / "whole.pt")
    with pytest.raises(PsaqError, match=r"whole\.pt: is no plain file of weights"):
        load_weights(Own(), tmp_path / "whole.pt")


@pytest.mark.parametrize("keep", [0, 10, 700])
def test_a_damaged_file_is_named(trained, tmp_path, keep):
    path = tmp_path / "cut.pth"
    torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PsaqError, match=r"cut\.pth: is (damaged|no plain)"):
        load_weights(Own(), path)


def test_the_endings_that_are_read_are_named(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.model")
    with pytest.raises(PsaqError, match=r"not a safetensors file.*ends in \.pth, \.pt, .*\.tar"):
        load_weights(Own(), tmp_path / "weights.model")


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(PsaqError, match=f"{name}: there is no such file"):
        load_weights(Own(), tmp_path / name)


def test_what_is_no_path_is_named():
    with pytest.raises(PsaqError, match="weights 5: must be the path of a file"):
        load_weights(Own(), 5)


@pytest.mark.parametrize("content", [{"epoch": 3, "optimizer": {}}, [1, 2], {}])
def test_a_file_without_weights_says_what_it_holds(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(
        PsaqError, match=r"weights\.pth: holds no weights under model, .*, but (epoch, optimizer|nothing)"
    ):
        load_weights(Own(), tmp_path / "weights.pth")


def test_missing_left_over_and_misshapen_tensors_are_listed(trained, tmp_path):
    tensors = trained.state_dict()
    del tensors["head.bias"]
    tensors |= {"norm.weight": torch.ones(1), "encoder.bias": torch.ones(5), "x": torch.ones(1)}
    torch.save(tensors, tmp_path / "weights.pth")
    wrong = r"encoder\.bias is \(5,\), not \(4,\); head\.bias is missing; norm\.weight is unknown; and 1 more"
    with pytest.raises(PsaqError, match=wrong):
        load_weights(Own(), tmp_path / "weights.pth")


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_a_model_keeps_its_type(trained, tmp_path, dtype):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    loaded = load_weights(Own().to(dtype), tmp_path / "weights.pth")
    assert loaded.head.weight.dtype == dtype
    assert _same(loaded, trained.to(dtype))
