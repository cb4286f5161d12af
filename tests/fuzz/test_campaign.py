"""Of 300 damaged files of each format none is read to something else, and none ends in an error that is not psaq's."""

import pytest
from fuzz.campaign import DAMAGES, MISSTATED, campaign, total
from fuzz.formats import FORMATS, Format


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_nothing_damaged_passes_for_right(form, tmp_path):
    tally = campaign(form, 300, 1, tmp_path)
    assert (total(tally, "silent"), total(tally, "raw")) == (0, 0), tally
    assert total(tally, "refused") > 200
    if form.misstate:
        assert tally[MISSTATED]["refused"] == sum(tally[MISSTATED].values()) > 0


def test_a_reader_that_checks_nothing_is_found_out(tmp_path):
    def make(folder):
        (folder / "plain.txt").write_text("a line, 1.5\nanother, 2.5\n")
        return folder / "plain.txt"

    tally = campaign(Format("plain", make, lambda path: path.read_text(encoding="utf-8"), None), 300, 1, tmp_path)
    assert tally.keys() == DAMAGES.keys()
    assert total(tally, "silent") > 100
    assert total(tally, "raw") > 20  # no longer UTF-8
