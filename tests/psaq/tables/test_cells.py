"""Cells of a table: whole or absent, and never another's."""

import json
import math
from functools import partial

import pytest

from psaq.errors import PsaqError
from psaq.files import read_record
from psaq.quantization.recipes import RECIPES, Recipe
from psaq.tables.cells import Cell, CellStore, Result
from psaq.tasks.classification import Report

CELL = Cell("vit_tiny.tag", "paper", "W4A8", "PSAQ", 2)
RESULT = Result(CELL, Report(50.0, 75.0, 8, 90.0, math.inf), 60.0, "digest")


def test_what_is_written_is_read_again(tmp_path):
    store = CellStore(tmp_path / "cells")
    assert not store.has(CELL)
    store.write(RESULT)
    assert store.has(CELL)
    assert store.read(CELL) == RESULT
    assert not store.has(Cell("vit_tiny.tag", "paper", "W4A8", "PSAQ", 1))


def test_other_weights_are_noticed(tmp_path):
    store = CellStore(tmp_path)
    store.write(RESULT)
    store.check_weights([CELL], "digest")
    with pytest.raises(PsaqError, match=r"other weights of vit_tiny\.tag"):
        store.check_weights([CELL], "another digest")


def test_a_cell_of_another_recipe_of_the_same_name_is_refused(tmp_path, monkeypatch):
    store = CellStore(tmp_path)
    store.write(RESULT)
    monkeypatch.setitem(RECIPES, "paper", partial(Recipe.paper, scope="linear"))
    with pytest.raises(PsaqError, match=r"another paper recipe \(scope 'all', not 'linear'\); name another folder"):
        store.read(CELL)


@pytest.mark.parametrize("content", ["{", "{}", '{"cell": {}, "report": {}, "fp_top1": 1, "weights": ""}'])
def test_a_damaged_cell_is_named(content, tmp_path):
    store = CellStore(tmp_path)
    store.write(RESULT)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    with pytest.raises(PsaqError, match=f"{file.name}: is damaged"):
        store.read(CELL)


def test_a_cell_from_before_a_field_was_added_is_read(tmp_path):
    store = CellStore(tmp_path)
    store.write(RESULT)
    (file,) = tmp_path.iterdir()
    content = read_record(file)
    del content["quantiser"]["pixel_grid"]
    file.write_text(json.dumps(content))
    assert store.read(CELL) == RESULT
    content["quantiser"]["weight_scales"] = "squared_error"
    file.write_text(json.dumps(content))
    with pytest.raises(PsaqError, match="weight_scales 'squared_error', not 'max'"):
        store.read(CELL)


def test_a_cell_under_another_ones_name_is_refused(tmp_path):
    store = CellStore(tmp_path)
    store.write(RESULT)
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / file.name.replace("seed2", "seed1"))
    with pytest.raises(PsaqError, match="seed 2; remove it"):
        store.read(Cell("vit_tiny.tag", "paper", "W4A8", "PSAQ", 1))
