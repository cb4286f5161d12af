"""Where a table's images come from."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from noise_picture import noise_picture
from PIL import Image

from psaq.errors import PsaqError
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures
from psaq.images.preprocessing import preprocessing_for
from psaq.models.zoo import load_model
from psaq.tables.labelled import ImageSource, spread


@pytest.fixture
def root(tmp_path):
    for part, count in (("val", 4), ("train", 2)):
        for index in range(10):
            folder = tmp_path / part / f"class{index}"
            folder.mkdir(parents=True)
            for number in range(count):
                noise_picture((40, 40), 20 + 10 * index + number).save(folder / f"{number}.png")
    return tmp_path


def source(root=None, images=50_000, calibration=None):
    return ImageSource(root, images, 0.9, calibration, 0.8)


def test_a_folder_with_val_and_train_serves_both(root, vit):
    whole = imagenet(root / "val", vit, 0.9)
    dataset = source(root).evaluation("any", vit)
    assert len(dataset) == 40
    assert torch.equal(dataset[17][0], whole[17][0])
    assert torch.equal(source(root).real("any", vit, 5), load_pictures(root / "train", vit, 5, 0.8))


def test_fewer_images_are_spread_over_all_classes(root, vit):
    dataset = source(root / "val", images=10).evaluation("any", vit)
    assert [dataset[index][1] for index in range(10)] == list(range(10))
    assert spread(7, 3) == [0, 2, 4]


def test_real_images_may_lie_anywhere(root, vit):
    real = source(root / "val", calibration=root / "train" / "class3").real("any", vit, 2)
    assert torch.equal(real, load_pictures(root / "train" / "class3", vit, 2, 0.8))


def test_a_hugging_face_folder_serves_both(root, vit):
    hub = root / "hub"
    hub.mkdir()
    for part, name in (("val", "validation"), ("train", "train")):
        files = sorted((root / part).rglob("*.png"))
        pictures, labels = [file.read_bytes() for file in files], [int(file.parent.name[5:]) for file in files]
        pq.write_table(pa.table({"image": pictures, "label": labels}), hub / f"{name}-00000-of-00001.parquet")
    dataset = source(hub, images=20).evaluation("any", vit)
    assert [dataset[index][1] for index in range(20)] == [index // 2 for index in range(20)]
    preprocess, train = preprocessing_for(vit, 0.8), sorted((root / "train").rglob("*.png"))
    expected = torch.stack([preprocess(Image.open(train[index])) for index in spread(20, 5)])
    assert torch.equal(source(hub).real("any", vit, 5), expected)
    with pytest.raises(PsaqError, match="20 training images, 21 are needed"):
        source(hub).real("any", vit, 21)


def test_bundled_models_have_scenes_of_their_own():
    model = load_model("micro_vit")
    assert len(source(images=30).evaluation("micro_vit", model)) == 30
    assert len(source().evaluation("micro_vit", model)) == 1000
    assert source().real("micro_vit", model, 3).shape == (3, 3, 64, 64)


def test_what_is_missing_is_named(root, vit):
    with pytest.raises(PsaqError, match="--imagenet DIR"):
        source().check("deit_tiny")
    with pytest.raises(PsaqError, match="nowhere: there is no such folder"):
        source(root / "nowhere").evaluation("deit_tiny", vit)
    with pytest.raises(PsaqError, match="--calibration DIR"):
        source(root / "val").real("deit_tiny", vit, 2)
    with pytest.raises(PsaqError, match="21 pictures: 20 were found"):
        source(root).real("deit_tiny", vit, 21)
