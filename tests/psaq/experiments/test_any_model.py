"""The table of many makes: a row says what came out, and a table that is begun goes on."""

import csv

import pytest
from makes import made

from psaq.errors import PsaqError
from psaq.experiments import any_model
from psaq.experiments.any_model import AnyModel, Row, measured
from psaq.experiments.architectures import TIMM, TRANSFORMERS, architectures


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
def test_a_row_says_what_came_out():
    row = measured("own: products", lambda: made("own: products"))
    assert (row.layers, row.attentions, row.share) == (4, 1, 100.0)
    assert row.w8a8 > row.w4a8 > 5
    assert (row.file, row.compiled, row.exported) == ("same", "same", "same")
    assert "pixel grid" in row.left_out


def test_every_family_named_is_there():
    assert len(TIMM) == 48
    assert len(architectures()) == len(TIMM) + len(TRANSFORMERS) + 3


def test_a_table_that_is_begun_goes_on(tmp_path, monkeypatch):
    row = Row("", 1, 1, 100.0, 40.0, 30.0, "", "same", "same", "same", "same", 1.0)
    asked = []
    monkeypatch.setattr(any_model, "architectures", lambda: {"a: 1": object, "a: 2": object, "b: 3": object})
    monkeypatch.setattr(
        any_model, "measured", lambda name, _: asked.append(name) or Row(**{**vars(row), "model": name})
    )
    for only in ("a: 2", "a", ""):
        AnyModel(out=tmp_path / "table.csv", only=only).run()
    assert asked == ["a: 2", "a: 1", "b: 3"]
    with (tmp_path / "table.csv").open() as file:
        assert [line["model"] for line in csv.DictReader(file)] == ["a: 1", "a: 2", "b: 3"]
    with pytest.raises(PsaqError, match="no model has that in its name"):
        AnyModel(out=tmp_path / "table.csv", only="none").run()
