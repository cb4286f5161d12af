"""Hugging Face data sets on disk: the same images as their files hold, whatever the layout."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from psaq.errors import PsaqError
from psaq.images.hugging_face import hugging_face_images, is_hugging_face
from psaq.images.imagenet import imagenet
from psaq.images.preprocessing import preprocessing_for

FEATURES = {
    "picture": {"_type": "Image"},
    "class": {"_type": "ClassLabel", "names": [f"class {index}" for index in range(10)]},
}


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def table(seeds, features=FEATURES, names=("picture", "class"), labels=None):
    pictures = [{"bytes": png(seed), "path": None} for seed in seeds]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = [seed % 10 for seed in seeds] if labels is None else labels
    columns = pa.table([pa.array(pictures, kind), pa.array(labels, pa.int64())], names=list(names))
    return columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_stream(path, content, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)


@pytest.fixture
def hub(tmp_path):
    """As downloaded: Parquet files by split, several row groups each."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table(range(7)), folder / "validation-00000-of-00002.parquet", row_group_size=3)
    pq.write_table(table(range(7, 12)), folder / "validation-00001-of-00002.parquet", row_group_size=2)
    pq.write_table(table(range(20, 24)), folder / "train-00000-of-00001.parquet")
    return tmp_path / "hub"


@pytest.fixture
def saved(tmp_path):
    """As ``save_to_disk`` leaves it: a folder per split, Arrow streams named by state.json."""
    for split, shards in {"validation": [range(7), range(7, 12)], "train": [range(20, 24)]}.items():
        names = [f"data-{index:05d}.arrow" for index in range(len(shards))]
        for name, seeds in zip(names, shards, strict=True):
            write_stream(tmp_path / "saved" / split / name, table(seeds), rows=2)
        state = {"_data_files": [{"filename": name} for name in names]}
        (tmp_path / "saved" / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["validation", "train"]}')
    return tmp_path / "saved"


@pytest.mark.parametrize("layout", ["hub", "saved"])
def test_images_and_classes_are_the_files_in_order(layout, request, vit):
    root = request.getfixturevalue(layout)
    preprocess = preprocessing_for(vit, 0.9)
    for dataset, seeds in (
        (imagenet(root, vit, 0.9), range(12)),
        (hugging_face_images(root, vit, "train", 0.9), range(20, 24)),
    ):
        assert len(dataset) == len(seeds)
        for (image, label), seed in zip((dataset[index] for index in range(len(dataset))), seeds, strict=True):
            assert label == seed % 10
            assert torch.equal(image, preprocess(Image.open(io.BytesIO(png(seed)))))


@pytest.mark.parametrize("layout", ["hub", "saved"])
def test_reader_processes_give_the_same(layout, request, vit):
    dataset = imagenet(request.getfixturevalue(layout), vit)
    dataset[11]  # read in this process first: the others must not share its place in the file
    images = torch.cat([batch for batch, _ in DataLoader(dataset, batch_size=5, num_workers=2)])
    assert torch.equal(images, torch.stack([dataset[index][0] for index in range(12)]))


def test_a_split_folder_and_plain_names_serve_as_well(saved, tmp_path, vit):
    assert len(imagenet(saved / "validation", vit)) == 12
    (tmp_path / "plain").mkdir()
    pq.write_table(table(range(3), {}, ("image", "label")), tmp_path / "plain" / "images.parquet")
    assert [label for _, label in imagenet(tmp_path / "plain", vit)] == [0, 1, 2]


def test_an_index_out_of_range_ends_the_data_set(hub, vit):
    with pytest.raises(IndexError):
        imagenet(hub, vit)[12]
    assert not is_hugging_face(hub / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(range(2), names=("photo", "class")), "columns photo, class"),
        (table(range(2), {**FEATURES, "class": {"_type": "ClassLabel", "names": ["one"]}}), "has 1 classes"),
        (table(range(2)).set_column(1, "class", pa.array(["cat", "dog"])), "'class' holds string, not numbers"),
        (table(range(2), labels=[3, -1]), "row 1: has no label"),
        (table(range(2), labels=[3, None]), "row 1: has no label"),
        (table(range(2)).set_column(0, "picture", pa.array([b"not a picture"] * 2)), "row 0: is not an image"),
        (
            table(range(2)).set_column(0, "picture", pa.array([{"bytes": None, "path": "x.png"}] * 2)),
            "row 0: holds no picture",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(content, message, tmp_path, vit):
    pq.write_table(content, tmp_path / "validation.parquet")
    with pytest.raises(PsaqError, match=message):
        list(imagenet(tmp_path, vit))


@pytest.mark.parametrize("layout", ["hub", "saved"])
def test_a_damaged_file_is_named(layout, request, vit):
    root = request.getfixturevalue(layout)
    file = sorted(root.rglob("*validation*.parquet") if layout == "hub" else root.glob("validation/*.arrow"))[0]
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(PsaqError, match=f"{file.name}: cannot be read"):
        list(imagenet(root, vit))


def test_a_split_that_is_not_there_is_named(hub, vit):
    (hub / "data" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(PsaqError, match="no Hugging Face data set with a split 'train'"):
        hugging_face_images(hub, vit, "train")


def test_without_pyarrow_the_way_out_is_named(hub, vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PsaqError, match=r"pip install 'psaq\[huggingface\]'"):
        imagenet(hub, vit)
