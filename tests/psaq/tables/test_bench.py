"""Where a model's weights lie."""

from psaq.tables.bench import weights_file


def test_weights_are_found_by_short_name_or_tag(tmp_path):
    assert weights_file(tmp_path, "deit_tiny") is None
    for name in ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "deit_tiny"):
        (tmp_path / f"{name}.safetensors").touch()
        assert weights_file(tmp_path, "deit_tiny") == tmp_path / f"{name}.safetensors"
    assert weights_file(None, "deit_tiny") is None
