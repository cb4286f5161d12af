"""The table of many makes: a row says what came out, and a table that is begun goes on."""

import csv
from pathlib import Path

import pytest
from makes import made

from psaq.errors import PsaqError
from psaq.experiments import any_model
from psaq.experiments.any_model import RESULTS, AnyModel, Row, measured, page
from psaq.experiments.architectures import TIMM, TRANSFORMERS, architectures
from psaq.experiments.rows import read_rows

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
def test_a_row_says_what_came_out():
    row = measured("own: products", lambda: made("own: products"))
    assert (row.layers, row.attentions, row.share) == (4, 1, 100.0)
    assert row.w8a8 > row.w4a8 > 5
    assert (row.file, row.compiled, row.exported) == ("same", "same", "same")
    assert "pixel grid" in row.left_out


def test_the_page_is_the_table(tmp_path):
    AnyModel(out=RESULTS, only=read_rows(RESULTS, Row)[0].model, page=tmp_path / "models.md").run()
    found = (tmp_path / "models.md").read_text(encoding="utf-8")
    assert found == PAGE.read_text(encoding="utf-8")
    assert found.count("\n| timm: ") + found.count("\n| transformers: ") + found.count("\n| torchvision: ") == len(
        read_rows(RESULTS, Row)
    )


def test_the_page_names_what_is_not_the_same():
    rows = [
        Row("a", 1, 1, 100.0, 40.0, 30.0, "folded norms", "same", "35 dB", "same", "RuntimeError", 1.0),
        Row("b", 1, 1, 98.6, 40.0, 30.0, "", "same", "same", "same", "same", 1.0),
    ]
    *_, first, second, _ = page(rows).split("\n")
    assert first == "| a | 100 % | 40.0 | 30.0 | folded norms | integers: 35 dB, exported: RuntimeError |"
    assert second == "| b | 99 % | 40.0 | 30.0 | – | – |"


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
