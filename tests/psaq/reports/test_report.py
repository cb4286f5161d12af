"""``report.html``: what the run recorded and nothing else, in one file that a browser shows without complaint."""

import csv
import html
import json
import math
import re

import numpy as np
import pytest
from browser import CHROMIUM, Page
from plot_examples import GRID, density_curves, pictures

from psaq.errors import PsaqError
from psaq.reports import write_report
from psaq.reports.sections import duration, model_sizes, read_history
from psaq_plots import density_figure, samples_figure, save_figure

LAYERS = {f"blocks.{index}.mlp.fc1": {"weights": 20.0 + index, "activations": 30.0 - index} for index in range(4)}
ROW = {"model": "deit_tiny", "precision": "W8A8", "fp_top1": 81.5, "agreement": 94.0, "logit_sqnr": 11.5, "n": 600}
RECORD = {
    "command": "table1",
    "config": {"model": {"model": "deit_tiny", "weights": None}, "bits": [4, 8], "rate": 0.25},
    "seed": 7,
    "versions": {"psaq": "0.1.0", "torch": "2.14.1"},
    "device": "A <Processor> & Co, 2 threads",
    "timings": {"synthesis": 83.2, "total": 3725.0},
    "results": {
        "table": [
            {**ROW, "method": "Standard", "top1": 81.17, "paper_top1": 71.27},
            {**ROW, "method": "Gaussian", "top1": 6.17, "paper_top1": 10.55},
            {**ROW, "method": "PSAQ", "top1": 82.0, "paper_top1": 71.56},
        ],
        "sizes": {"full_precision": 22_870_000, "W4A8": 3_200_000},
        "layer_sqnr": LAYERS,
        "entropy": -4.5,
    },
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_record(folder, RECORD)
    with (folder / "history.csv").open("w", newline="") as stream:
        rows = [[batch, step, 1 / (step + 1), step] for batch in range(2) for step in range(30)]
        csv.writer(stream).writerows([["batch", "step", "entropy", "class_loss"], *rows])
    save_figure(samples_figure(pictures(4)), folder / "samples.png")
    (folder / "micro_vit" / "images").mkdir(parents=True)
    save_figure(density_figure(GRID, density_curves(2), ["block 1", "block 2"]), folder / "micro_vit" / "density.png")
    (folder / "images").mkdir()
    (folder / "images" / "0000_class1.png").write_bytes(b"not to be shown")
    (folder / "micro_vit" / "history.csv").write_text("batch,step,total\n0,0,1.5\n")
    (folder / "density.json").write_text(json.dumps({"sources": {"noise": {"verdict": "unimodal in all 2 layers"}}}))
    return folder


def write_record(folder, record):
    (folder / "run.json").write_text(json.dumps(record))


def text_of(path):
    """What a reader sees: the page without its styles, tags and pictures."""
    page = re.sub(r"<style>.*?</style>", " ", path.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_page_tells_what_ran_and_what_came_of_it(run):
    text = text_of(write_report(run))
    for expected in (
        "psaq table1",
        "A <Processor> & Co, 2 threads",
        "seed 7",
        "1 h 2 min",
        "deit_tiny full precision 81.50%, 600 images W8A8 Standard 81.17 94.00 11.50 71.27",
        "W8A8 PSAQ 82.00 94.00 11.50 71.56",
        "full precision 22.9 MB",
        "W4A8 3.2 MB",
        "noise unimodal in all 2 layers",
        "bits 4, 8",
        "rate 0.25",
        "torch 2.14.1",
        "entropy -4.5",
        "synthesis 1 min 23 s",
    ):
        assert expected in text, expected


def test_pictures_are_the_runs_and_those_drawn_from_its_numbers(run):
    page = write_report(run).read_text()
    assert re.findall(r"<h4>(.*?)</h4>\s*<picture>", page) == [
        "Accuracy",
        "Quantisation error by layer",
        "Synthesised images",
        "Losses",
        "Losses",
        "Patch-similarity density",
    ]
    texts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert [text.split(".")[0] for text in texts[3:]] == [
        "Losses",
        "Losses: micro_vit",
        "Patch-similarity density: micro_vit",
    ]
    assert all(len(text.split()) > 5 for text in texts), (
        "a text says what the picture shows, not only what it is called"
    )
    captions = re.findall(r"</picture>\s*<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == len(texts), "every picture has a sentence on how to read it"
    assert all(caption.endswith(".") for caption in captions)


def test_the_story_is_told_in_order(run):
    page = write_report(run).read_text()
    headings = re.findall(r"<(?:h2|h3|summary)>(.*?)</", page)
    assert headings == [
        "What was asked",
        "Result",
        "Pictures",
        "micro_vit",
        "Patch-similarity densities",
        "micro_vit",
        "Details",
        "Configuration",
        "Timings",
        "Versions",
    ]
    assert "open" not in re.findall(r"<details(.*?)>", page)[0]


def test_rows_stand_under_their_model_and_the_best_of_a_precision_is_marked(run):
    rows = [{**row, "model": model} for row in RECORD["results"]["table"] for model in ("deit_tiny", "swin_tiny")]
    write_record(run, {**RECORD, "results": {"table": rows, "summary": "Noise loses <all>."}})
    page = write_report(run).read_text()
    assert re.findall(r'scope="rowgroup">(\w+)', page) == ["deit_tiny", "swin_tiny"]
    best = re.findall(r'<tr class="best"><td>(.*?)</td><td>(.*?)</td>', page)
    assert best == [("W8A8", "PSAQ")] * 2
    assert '<p class="summary">Noise loses &lt;all&gt;.</p>' in page


def test_rows_of_one_model_that_differ_in_full_precision_say_it_each(run):
    rows = [{**row, "fp_top1": 80.0 + index} for index, row in enumerate(RECORD["results"]["table"])]
    write_record(run, {**RECORD, "results": {"table": rows}})
    text = text_of(write_report(run))
    assert "deit_tiny 600 images" in text
    assert "W8A8 PSAQ 82.00 82.00 94.00" in text


def test_what_was_asked_stands_first_and_what_was_recorded_with_the_result(run):
    config = {"precision": "W4A8", "images": "runs/<images>", "seed": 7}
    write_record(run, {**RECORD, "config": config, "results": {"fp": {"top1": 81.5}, "pictures": "1 passed over"}})
    text = text_of(write_report(run))
    asked, rest = text.split(" Result ", 1)
    assert "precision W4A8 images runs/<images> seed 7" in asked
    assert rest.split(" Pictures ")[0] == "fp.top1 81.5 pictures 1 passed over"


@pytest.mark.parametrize("stem", ["_", " ", 'a"><script>', "own_figure"])
def test_a_picture_of_any_name_has_a_text(tmp_path, stem):
    write_record(tmp_path, RECORD)
    save_figure(samples_figure(pictures(1)), tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / f"{stem}.png")
    page = write_report(tmp_path).read_text()
    assert all(html.unescape(text).strip(" .") for text in re.findall(r'<img [^>]*alt="([^"]*)"', page))
    assert "<script" not in page


def test_page_is_one_file_that_names_no_address(run):
    page = write_report(run).read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in page
    assert "http://" not in re.sub(r"base64,[^\"]*", "", page)
    assert "https://" not in re.sub(r"base64,[^\"]*", "", page)


def test_a_run_that_only_started_has_its_page(tmp_path):
    empty: dict[str, dict] = {part: {} for part in ("config", "versions", "timings", "results")}
    write_record(tmp_path, {**RECORD, **empty, "command": "synthesize"})
    text = text_of(write_report(tmp_path))
    assert "not finished" in text
    for absent in ("Accuracy", "Size", "Losses", "Results", "Versions"):
        assert absent not in text


def test_rows_without_published_numbers_have_no_such_column(run):
    rows = [{**row, "paper_top1": None} for row in RECORD["results"]["table"]]
    write_record(run, {**RECORD, "results": {"table": rows}})
    text = text_of(write_report(run))
    assert "published" not in text
    assert "PSAQ 82.00 94.00" in text


def test_means_over_seeds_show_their_deviation_and_recipes_stay_apart(run):
    row = {**ROW, "method": "PSAQ", "top1": 82.0}
    rows = [{**row, "recipe": "paper", "top1_std": 0.25}, {**row, "recipe": "accurate", "top1_std": None}]
    write_record(run, {**RECORD, "results": {"table": rows}})
    text = text_of(write_report(run))
    assert "paper W8A8 PSAQ 82.00 ± 0.25 94.00" in text
    assert "accurate W8A8 PSAQ 82.00 94.00" in text


def test_same_run_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json: is damaged"),
        ("run.json", "[]", "no names in it"),
        ("run.json", None, "holds no run.json"),
        ("run.json", json.dumps({**RECORD, "speed": 1}), "run.json: is no run's record .speed"),
        ("run.json", json.dumps({**RECORD, "timings": {"total": -math.inf}}), "timings is unknown, missing or wrong"),
        ("run.json", json.dumps({**RECORD, "files": {"history.csv": "0" * 64}}), "history.csv: is not as the run"),
        ("history.csv", "batch,step,entropy\n0,0,much\n", "history.csv: is damaged"),
        ("history.csv", "entropy\n1\n", "history.csv: is damaged"),
        ("density.json", '{"sources": {"noise": {}}}', "density.json: lacks 'verdict'"),
    ],
)
def test_a_damaged_file_is_named_and_no_page_is_written(run, name, content, message):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(PsaqError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_history_is_read_by_batch(run):
    history = read_history(run / "history.csv")
    assert set(history) == {"entropy", "class_loss"}
    np.testing.assert_array_equal(history["class_loss"], [range(30)] * 2)


@pytest.mark.parametrize(("seconds", "text"), [(59.9, "59.9 s"), (60, "1 min 0 s"), (7322, "2 h 2 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_sizes_are_shares_of_the_largest():
    sizes = model_sizes({"small": 250, "W4_A8": 3_250_000, "large": 5_000_000_000})
    assert [(size.name, size.text) for size in sizes] == [("large", "5 GB"), ("W4 A8", "3.25 MB"), ("small", "250 B")]
    assert [size.share for size in sizes] == pytest.approx([100, 0.065, 5e-6])


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture
def page(tmp_path):
    with Page(tmp_path / "profile") as page:
        yield page


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_every_picture_without_complaint(run, page, width, dark):
    file = write_report(run)
    page.open(file, width, dark)
    shown = page.ask("Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(shown) == 6
    assert all(complete and natural > 100 and client > 100 for complete, natural, client in shown)
    assert page.ask("document.documentElement.scrollWidth") <= width, "the page is wider than its window"
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [file.resolve().as_uri()]
    drawn_for = page.ask("document.images[0].currentSrc == document.images[0].src")
    assert drawn_for is not dark, "figures have a dark version for dark screens"
    background = page.ask("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(13, 15, 18)" if dark else "rgb(246, 247, 248)")


CONTRASTS = """
(() => {
  const seen = document.createElement("canvas").getContext("2d");
  const light = colour => {
    seen.fillStyle = colour;
    const parts = [1, 3, 5].map(i => parseInt(seen.fillStyle.slice(i, i + 2), 16) / 255);
    const [r, g, b] = parts.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const clear = "rgba(0, 0, 0, 0)";
  const ground = e => e && getComputedStyle(e).backgroundColor == clear ? ground(e.parentElement) : e;
  const worded = e => Array.from(e.childNodes).some(n => n.nodeType == 3 && n.textContent.trim());
  return Array.from(document.querySelectorAll("main, main *")).filter(worded).map(e => {
    const pair = [light(getComputedStyle(e).color), light(getComputedStyle(ground(e)).backgroundColor)];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  });
})()
"""
"""WCAG 2's contrast of every element that holds words with what lies behind it."""


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(run, page, dark):
    page.open(write_report(run), dark=dark)
    contrasts = page.ask(CONTRASTS)
    assert len(contrasts) > 50
    assert min(contrasts) >= 4.5


@needs_chromium
def test_the_table_of_one_recipe_fits_a_telephone(run, page):
    rows = [{**row, "top5": 100.0, "paper_top1": None} for row in RECORD["results"]["table"]]
    write_record(run, {**RECORD, "results": {"table": rows}})
    page.open(write_report(run), 390)
    assert page.ask("document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth")


@needs_chromium
def test_paper_gets_dark_words_on_white_and_what_is_folded_away(run, page):
    page.open(write_report(run), dark=True)
    assert page.ask("document.querySelector('.details').checkVisibility({contentVisibilityAuto: true})") is False
    page.show_as("print")
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.ask("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.ask("document.querySelector('.details').getBoundingClientRect().height") > 100
    assert page.becomes("document.images[0].currentSrc == document.images[0].src"), "the light figure goes on paper"


@needs_chromium
def test_browser_would_complain_of_a_missing_picture_and_a_script(tmp_path, page):
    file = tmp_path / "broken.html"
    file.write_text('<img src="nowhere.png"><script>nothing()</script>')
    page.open(file)
    assert page.ask("document.images[0].naturalWidth") == 0
    assert any("nothing" in complaint for complaint in page.complaints)
    assert any("nowhere.png" in url for url in page.requests)
