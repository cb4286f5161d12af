"""Annotations as COCO writes them: what cannot be right is named by its number, before any work."""

import json
import sys

import pytest
import torch
from dense_makes import annotations, dense_model, write_annotations, write_pictures
from PIL import Image
from torchvision.transforms.functional import to_tensor

from psaq.errors import PsaqError
from psaq.images.coco import coco
from psaq.models.data import data_config

pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def detector():
    return dense_model("Swin FCOS")


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "images")
    return tmp_path


def changed(**changes):
    """The usual annotations, with entries changed: "annotations_3" is the fourth of them."""
    content = annotations()
    for place, change in changes.items():
        name, index = place.split("_")
        content[name][int(index)] |= change
    return content


def test_a_detector_gets_its_pictures_as_they_are(folder, detector):
    pictures = coco(folder / "images", write_annotations(folder / "boxes.json"), detector)
    assert len(pictures) == 3
    image, truth = pictures[1]
    assert torch.equal(image, to_tensor(Image.open(folder / "images" / "1.png")))
    assert (truth.image_id, truth.size) == (2, (48, 60))
    assert pictures.category_names() == {1: "red", 2: "white", 3: "small"}
    assert pictures.has_masks


def test_another_model_gets_them_whole_at_its_size(folder):
    model = dense_model("YOLOS")
    image, truth = coco(folder / "images", write_annotations(folder / "boxes.json"), model)[0]
    assert image.shape == (3, *data_config(model).image_size)
    assert truth.size == (48, 60)


def test_area_and_crowds_are_filled_in(folder, detector):
    content = annotations()
    for each in content["annotations"]:
        del each["iscrowd"], each["segmentation"]
        each["area"] = None
    pictures = coco(folder / "images", write_annotations(folder / "boxes.json", content), detector)
    for each in pictures.annotations["annotations"]:
        assert each["area"] == pytest.approx(each["bbox"][2] * each["bbox"][3])
        assert each["iscrowd"] == 0
    assert not pictures.has_masks


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (changed(annotations_4={"bbox": [1, 2, 3]}), r"annotation 5: its bbox \[1, 2, 3\] is not"),
        (changed(annotations_4={"bbox": [1, 2, 3, "4"]}), "annotation 5: its bbox"),
        (changed(annotations_0={"bbox": [1, 2, 0, 4]}), "annotation 1: .* has no extent"),
        (changed(annotations_0={"bbox": [1, 2, float("nan"), 4]}), "NaN|annotation 1: its bbox"),
        (changed(annotations_0={"bbox": [70, 2, 3, 4]}), "annotation 1: .* lies outside"),
        (changed(annotations_2={"image_id": 9}), "annotation 3: its image 9 is not among the images"),
        (changed(annotations_2={"category_id": 9}), "annotation 3: its category 9"),
        (changed(annotations_2={"area": -1}), "annotation 3: its area -1"),
        (changed(annotations_2={"id": 1}), "id 1 stands 2 times among annotations"),
        (changed(annotations_2={"id": "x"}), "entry 2 of annotations has no whole number"),
        (changed(images_1={"file_name": "absent.png"}), "image 2: there is no .*absent.png"),
        (changed(images_1={"width": 0}), "image 2 needs a file_name, a width and a height"),
        (changed(annotations_2={"iscrowd": "x"}), "annotation 3: its iscrowd 'x'"),
        (changed(annotations_2={"segmentation": [[1, 1, 5]]}), "annotation 3: its segmentation is neither"),
        (changed(annotations_2={"segmentation": "abc"}), "annotation 3: its segmentation is neither"),
        (changed(annotations_2={"image_id": [1]}), r"annotation 3: its image \[1\]"),
        (changed(annotations_2={"category_id": True}), "annotation 3: its category True"),
        (changed(annotations_2={"bbox": [1, 1, 10**400, 1]}), "annotation 3: its bbox"),
        ({**annotations(), "images": []}, "names no images"),
        ({**annotations(), "categories": []}, "names no categories"),
        ({"images": []}, "holds no list of annotations"),
        ([], "holds no list of images"),
    ],
)
def test_what_cannot_be_right_is_named(folder, detector, content, complaint):
    file = write_annotations(folder / "boxes.json", content)
    with pytest.raises(PsaqError, match=f"boxes.json.*{complaint}|{complaint}"):
        coco(folder / "images", file, detector)


def test_no_json_and_no_folder_are_named(folder, detector):
    (folder / "boxes.json").write_text("{")
    with pytest.raises(PsaqError, match=r"boxes\.json"):
        coco(folder / "images", folder / "boxes.json", detector)
    with pytest.raises(PsaqError, match="there is no such folder"):
        coco(folder / "absent", write_annotations(folder / "boxes.json"), detector)


def test_a_picture_of_another_size_than_is_said_is_named(folder, detector):
    Image.new("RGB", (30, 30)).save(folder / "images" / "0.png")
    pictures = coco(folder / "images", write_annotations(folder / "boxes.json"), detector)
    with pytest.raises(PsaqError, match=r"0\.png: is 30×30, .*boxes\.json says 60×48 of image 1"):
        pictures[0]


def test_a_label_without_a_category_is_named(folder, detector):
    file = write_annotations(folder / "boxes.json")
    pictures = coco(folder / "images", file, detector, labels=[3, 1])
    truth = pictures[0][1]
    assert truth.category(1) == 1
    assert pictures.class_names() == {0: "small", 1: "red"}
    with pytest.raises(PsaqError, match="label 2 of the model: labels names a category for 0 to 1 alone"):
        truth.category(2)
    for labels in ([7, 8], [1, 1]):
        with pytest.raises(PsaqError, match=r"must be categories of .* \(1, 2, 3\), each once"):
            coco(folder / "images", file, detector, labels=labels)


def test_labels_are_asked_for_where_names_show_that_they_are_others(folder):
    model = dense_model("YOLOS")
    model.config.id2label = {0: "red", 1: "white", 2: "small"}
    file = write_annotations(folder / "boxes.json")
    with pytest.raises(PsaqError, match="'red' is category 1, and the model's label 0; say with labels"):
        coco(folder / "images", file, model)
    coco(folder / "images", file, model, labels=[1, 2, 3])
    with pytest.raises(PsaqError, match="2 categories for the model's 3 labels"):
        coco(folder / "images", file, model, labels=[1, 2])


def test_outlines_count_where_each_object_has_one(folder, detector):
    content = annotations()
    content["annotations"][0]["segmentation"] = []
    assert not coco(folder / "images", write_annotations(folder / "boxes.json", content), detector).has_masks
    content["annotations"] = []
    assert not coco(folder / "images", write_annotations(folder / "boxes.json", content), detector).has_masks


def test_pycocotools_missing_is_said(folder, detector, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(PsaqError, match=r"pip install 'psaq\[dense\]'"):
        coco(folder / "images", folder / "boxes.json", detector)


def test_the_file_stays_as_it_was(folder, detector):
    file = write_annotations(folder / "boxes.json")
    before = file.read_text()
    coco(folder / "images", file, detector)
    assert file.read_text() == before
    assert json.loads(before) == annotations()
