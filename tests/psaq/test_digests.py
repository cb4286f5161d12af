"""What was damaged after it was written is refused, and named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from psaq.digests import PARTS, WHOLE
from psaq.errors import PsaqError
from psaq.files import load_tensors, read_record, read_safetensors, save_tensors, write_record

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.half": torch.ones((), dtype=torch.bfloat16),
    "c": torch.arange(-3, 5, dtype=torch.int8),
    "none": torch.zeros(0, 4),
    "yes": torch.tensor([True, False]),
}
HEADER = {"recipe": {"bits": 4}, "sqnr": float("inf")}


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "file.safetensors", TENSORS, "things", HEADER)
    return tmp_path / "file.safetensors"


def rewritten(path, change):
    """The file with other tensors or metadata, and the digest of before."""
    tensors, metadata = read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors["c"].add_(1), "tensor c differs"),
        (lambda tensors, _: tensors.update(a=tensors["a"].reshape(3, 2)), "tensor a differs"),
        (lambda tensors, _: tensors.update(a=tensors["a"].view(torch.int32)), "tensor a differs"),
        (lambda tensors, _: tensors.pop("c"), "4 tensors of 5"),
        (lambda tensors, _: tensors.update(d=torch.zeros(1)), "6 tensors of 5"),
        (lambda _, metadata: metadata.update(header='{"recipe": {"bits": 8}}'), "metadata differs"),
        (lambda _, metadata: metadata.update(format_version="0"), "metadata differs"),
        (lambda _, metadata: metadata.update({WHOLE: "0" * 64}), "metadata differs"),
        (lambda _, metadata: metadata.pop(WHOLE), "metadata differs"),
        (lambda _, metadata: metadata.pop(PARTS), "5 tensors of 0"),
        (lambda _, metadata: metadata.update(sha257=metadata.pop(WHOLE)), "'sha257', which is unknown"),
        (lambda _, metadata: metadata.update(header='{"recipe": NaN}'), "NaN"),
    ],
)
def test_what_differs_is_named(path, change, message):
    rewritten(path, change)
    with pytest.raises(PsaqError, match=rf"file\.safetensors.*{message}"):
        load_tensors(path, "things")


def test_a_single_number_of_a_wider_tensor_is_written(tmp_path):
    single = torch.arange(4.0).as_strided((1,), (4,))  # contiguous in torch's eyes, whatever its stride
    save_tensors(tmp_path / "file.safetensors", {"single": single}, "things", {})
    tensors, _ = load_tensors(tmp_path / "file.safetensors", "things")
    assert torch.equal(tensors["single"], torch.zeros(1))


def test_a_file_from_before_digests_is_read(path):
    rewritten(path, lambda _, metadata: [metadata.pop(name) for name in (WHOLE, PARTS)])
    tensors, header = load_tensors(path, "things")
    assert header == HEADER
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_other_libraries_read_the_file(path):
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(path).items())


@settings(deadline=None, max_examples=200)
@given(place=st.integers(0, 2**16), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flipped") / "file.safetensors"
    save_tensors(path, TENSORS, "things", HEADER)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        tensors, header = load_tensors(path, "things")
    except PsaqError:
        return
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_record_knows_its_content_however_it_is_laid_out(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"inf": float("inf"), "text": "Γ"}, "t": (1, 2)}
    write_record(tmp_path / "r.json", content)
    assert read_record(tmp_path / "r.json") == {**content, "t": [1, 2]}
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text.replace("\n", " "))
    assert read_record(tmp_path / "r.json") == {**content, "t": [1, 2]}
    (tmp_path / "r.json").write_text(text.replace("2.5", "2.6"))
    with pytest.raises(PsaqError, match=r"r\.json: is not as it was written"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize(("text", "message"), [('{"a": NaN}', "NaN"), ("[1]", "no names")])
def test_a_record_that_cannot_be_one_is_refused(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(PsaqError, match=message):
        read_record(tmp_path / "r.json")


def test_a_record_from_before_digests_is_read(tmp_path):
    (tmp_path / "r.json").write_text('{"a": 1}')
    assert read_record(tmp_path / "r.json") == {"a": 1}
