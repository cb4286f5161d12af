"""Files are whole or absent, and say what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from psaq.errors import PsaqError
from psaq.files import load_tensors, make_folder, read_json, save_tensors, write_json, write_text, write_whole


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5, dtype=torch.int8)}
    save_tensors(tmp_path / "file.safetensors", tensors, "things", {"recipe": {"bits": 4}})
    found, header = load_tensors(tmp_path / "file.safetensors", "things")
    assert header == {"recipe": {"bits": 4}}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail_half_way(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(PsaqError, match=r"file\.txt.*No space left"):
        write_whole(path, fail_half_way)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_that_names_the_file():
    # /dev/full accepts nothing: what a full disk answers to every write.
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write_to_full_disk(_temporary: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(PsaqError, match="No space left"):
        write_whole(Path("/tmp/psaq-never-written"), write_to_full_disk)
    assert not Path("/tmp/psaq-never-written").exists()


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(PsaqError, match="taken"):
        make_folder(tmp_path / "taken" / "inner")


@given(cut=st.integers(1, 200))
@settings(deadline=None, max_examples=30)
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "file.safetensors"
    save_tensors(path, {"a": torch.zeros(64)}, "things", {})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(PsaqError, match=r"truncated|not a safetensors"):
        load_tensors(path, "things")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "nothing that psaq wrote"),
        ({"psaq": "other", "format_version": "1", "header": "{}"}, "holds other, not things"),
        ({"psaq": "things", "format_version": "99", "header": "{}"}, "upgrade psaq"),
        ({"psaq": "things", "format_version": "new", "header": "{}"}, "not a number"),
        ({"psaq": "things", "format_version": "1", "header": "{"}, "header is damaged"),
        ({"psaq": "things", "format_version": "1"}, "header is damaged"),
    ],
)
def test_foreign_newer_and_damaged_files_are_told_apart(tmp_path, metadata, message):
    save_file({"a": torch.zeros(2)}, tmp_path / "file.safetensors", metadata)
    with pytest.raises(PsaqError, match=message):
        load_tensors(tmp_path / "file.safetensors", "things")


def test_absent_files_are_named(tmp_path):
    with pytest.raises(PsaqError, match="no such file"):
        load_tensors(tmp_path / "none.safetensors", "things")
    with pytest.raises(PsaqError, match="cannot be read"):
        read_json(tmp_path / "none.json")


def test_a_folder_where_nothing_can_be_made_is_named():
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder that is read-only even for an administrator: /proc")
    with pytest.raises(PsaqError, match=r"/proc/file\.json: could not be written"):
        write_json(Path("/proc/file.json"), {})


def test_json_comes_back_and_damage_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2]}
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(PsaqError, match="damaged"):
        read_json(tmp_path / "a.json")


def test_what_of_a_name_is_no_utf8_is_escaped(tmp_path):
    write_text(tmp_path / "page", "pictures of im\udcff")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "pictures of im\\udcff"
