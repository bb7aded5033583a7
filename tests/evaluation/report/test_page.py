"""Reports are self-contained and accessible, and escape all names."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftcli.evaluation import report
from ftcli.evaluation.report.page import write_report
from ftcli.evaluation.report.plots import CORRECT_COLOR, ERROR_COLOR
from ftcli.evaluation.report.sentences import describe_intervals, summarize_accuracy
from ftcli.results import (
    METRIC_INFO,
    EvaluatedImage,
    EvaluateResult,
    Metric,
    TemperatureScaling,
    describe_confidence,
)
from tests.conftest import UNICODE_CLASS_NAMES, Ftcli
from tests.evaluation.report.conftest import (
    Browser,
    create_evaluation,
    create_metrics,
    create_outputs,
    create_report_context,
)

HOSTILE = (
    "<script>document.title='broken'</script>",
    "\"quoted' & <b>bold</b> {{ 7 * 7 }}",
    "قطة",
    "狗 (柴犬)",
    "two\nlines \u202e turned",
    "🐶 puppy",
    "endless" * 29,
    "class 10",
    "class 9",
    "\udcff no Unicode",
    "</title><img src=x onerror=\"document.title='broken'\">",
)
WIDTHS = (360, 800, 1400)


class Page(HTMLParser):
    """The elements of a page in order, with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """Create a folder of images named like the hostile classes, as far as file systems allow."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(HOSTILE):
        file = os.fsencode(name.replace("/", "_"))[:200] + f" {number}.jpg".encode()
        shutil.copy(photo_folder / "test/flower/20.jpg", root / os.fsdecode(file))
    return root


@pytest.fixture(scope="session")
def hostile(pictures: Path) -> EvaluateResult:
    """Create an evaluation of eleven classes whose names would break an unescaped page; one has no image."""
    files = sorted(path.name for path in pictures.iterdir())
    labels, probabilities = create_outputs(220, len(HOSTILE), 0.7)
    labels = np.where(labels == 3, 4, labels)
    found = create_evaluation(HOSTILE, [files[i % len(files)] for i in range(220)], labels, probabilities)
    return dataclasses.replace(found, skipped=("broken <i>.jpg: is empty (0 bytes)",), views=4)


def test_write_report_escapes_names_and_is_self_contained(
    hostile: EvaluateResult, pictures: Path, tmp_path: Path, browser: Browser
) -> None:
    target = tmp_path / "report.html"
    write_report(hostile, create_report_context(pictures, create_metrics()), target)
    document, console = browser.open(target)
    assert console == []
    page = Page(document)
    assert "broken" not in "".join(page.texts[: page.texts.index("best_loss.pt on test") + 1])
    assert len(page.find("script")) == 1
    assert not page.find("b")
    assert not page.find("i")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    for tag, attributes in page.elements:
        for key in ("src", "href", "data", "action", "srcset"):
            assert (attributes.get(key) or "#").startswith(
                ("#", "data:image/jpeg;base64,", "data:image/png;base64,")
            ), tag
    text = "".join(page.texts)
    for shown in (
        *HOSTILE[:4],
        "two\\nlines \\u202e turned",
        *HOSTILE[5:9],
        "\\udcff no Unicode",
        HOSTILE[10],
        "a\\udcff <b>",
    ):
        assert shown in text
    assert len(page.find("img")) == 20


PROBE_SCRIPT = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), seen = {};
  const read = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  const heads = [...table.tHead.rows[0].cells];
  seen.before = read(1);
  for (const column of [1, 0, 4]) {
    const button = heads[column].querySelector("button");
    button.focus();
    const focused = document.activeElement === button;
    button.click();
    seen["up" + column] = [read(column), focused, heads.map((head) => head.getAttribute("aria-sort"))];
    button.click();
    seen["down" + column] = [read(column), heads[column].getAttribute("aria-sort")];
  }
  dispatchEvent(new Event("beforeprint"));
  seen.opened = document.querySelectorAll("details:not([open])").length;
  dispatchEvent(new Event("afterprint"));
  seen.closed = document.querySelectorAll("details[open]").length;
  seen.width = innerWidth;
  seen.scroll = document.documentElement.scrollWidth;
  seen.plots = [...document.querySelectorAll("svg")].map((plot) => plot.getBoundingClientRect().width);
  const fit = document.querySelector("button.fit");
  if (fit) {
    fit.click();
    seen.fitted = document.querySelector(".matrix-plot svg").getBoundingClientRect().width <= innerWidth;
    seen.pressed = fit.getAttribute("aria-pressed");
  }
  seen.paper = getComputedStyle(document.body).backgroundColor;
  seen.title = document.title;
  parent.postMessage(seen, "*");
});
</script>
"""

FRAMES = """<!DOCTYPE html><meta charset="utf-8"><pre></pre>
<script>
addEventListener("message", (event) => {
  document.querySelector("pre").textContent += JSON.stringify(event.data) + "\\n";
});
</script>
"""


def probe_page(page: Path, browser: Browser, *flags: str) -> list[dict[str, Any]]:
    """Run a script in the page at three widths; the content security policy allows this script too."""
    script = PROBE_SCRIPT.partition("<script>")[2].partition("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{allowed}' ")
    page.with_name("copy.html").write_text(text.replace("</body>", f"{PROBE_SCRIPT}</body>"), encoding="utf-8")
    frames = "".join(f'<iframe src="copy.html" style="width:{width}px;border:0"></iframe>' for width in WIDTHS)
    page.with_name("frames.html").write_text(FRAMES + frames, encoding="utf-8")
    document, console = browser.open(page.with_name("frames.html"), *flags)
    assert console == []
    (lines,) = [text for text in Page(document).texts if text.startswith("{")]
    return sorted((json.loads(line) for line in lines.splitlines()), key=lambda frame: int(frame["width"]))


def test_report_tables_sort_and_do_not_overflow(
    hostile: EvaluateResult, pictures: Path, tmp_path: Path, browser: Browser
) -> None:
    write_report(hostile, create_report_context(pictures, create_metrics()), tmp_path / "report.html")
    frames = probe_page(tmp_path / "report.html", browser, "--blink-settings=preferredColorScheme=0")
    assert [frame["width"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["scroll"] == frame["width"]
        assert all(width <= frame["width"] for width in frame["plots"])
        assert frame["paper"] == "rgb(20, 24, 29)"  # dark
        assert frame["title"] == "best_loss.pt on test"
        assert (frame["opened"], frame["closed"]) == (0, 0)
        counts = sorted(int(text) for text in frame["before"])
        names, focused, states = frame["up1"]
        assert focused
        assert [int(text) for text in names] == counts
        assert states == [None, "ascending", *[None] * 6]
        assert frame["down1"] == [[str(count) for count in reversed(counts)], "descending"]
        assert frame["up0"][0].index("class 9") == frame["up0"][0].index("class 10") - 1
        assert frame["down0"][0] == frame["up0"][0][::-1]
        assert frame["up4"][0][-1] == frame["down4"][0][-1] == "–"  # the class without images is last both times
        assert frame["up4"][0][:-1] == frame["down4"][0][:-1][::-1]


def test_report_of_hundred_classes_scrolls_and_prints(pictures: Path, tmp_path: Path, browser: Browser) -> None:
    files = [path.name for path in pictures.iterdir()]
    labels, probabilities = create_outputs(3000, 100, 0.8)
    evaluation = create_evaluation(
        [f"class {i}" for i in range(100)], [files[i % len(files)] for i in range(3000)], labels, probabilities
    )
    target = tmp_path / "report.html"
    write_report(evaluation, create_report_context(pictures), target)
    assert target.stat().st_size < 1_500_000
    for frame in probe_page(target, browser):
        assert frame["scroll"] == frame["width"]
        assert max(frame["plots"]) > 1400  # in a box of its own, with letters that can be read
        assert (frame["fitted"], frame["pressed"]) == (True, "true")
        assert frame["paper"] == "rgb(255, 255, 255)"
    browser.open(target, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())) > 3


def test_report_is_accessible(hostile: EvaluateResult, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    shutil.copy(photo_folder / "test/china/20.jpg", tmp_path / "many/cat.jpg")
    examples = (
        EvaluatedImage("many/cat.jpg", HOSTILE[2], HOSTILE[4], 0.984),
        EvaluatedImage("many/cat.jpg", "a", "a", 0.51),
    )
    evaluation = dataclasses.replace(hostile, worst=examples[:1], unsure=examples[1:])
    write_report(evaluation, create_report_context(tmp_path, create_metrics()), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "aria-controls"):
            assert set((attributes.get(key) or "").split()) <= ids.keys()
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
        if attributes.get("tabindex") == "0":
            assert attributes["aria-label"]
            assert attributes["role"] == "region"
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert page.find("html")[0] == {"lang": "en"}
    assert len(page.find("main")) == len(page.find("nav")) == 1
    assert len(page.find("caption")) == len(page.find("table"))
    assert all(attributes["scope"] in ("col", "row") for attributes in page.find("th"))
    assert all(attributes["alt"] for attributes in page.find("img"))
    assert [attributes["role"] for attributes in page.find("svg")] == ["img", "img"]
    assert len(page.find("desc")) == 2
    assert page.find("img")[0]["alt"] == (
        "\u2068many/cat.jpg\u2069: true class \u2068قطة\u2069, predicted class \u2068two\\nlines \\u202e "
        "turned\u2069 (98.4%), error"
    )
    assert page.find("img")[1]["alt"] == (
        "\u2068many/cat.jpg\u2069: true class \u2068a\u2069, predicted class \u2068a\u2069 (51.0%), correct"
    )
    assert [link["href"] for link in page.find("a")] == ["#main"] + [
        f"#{section}"
        for section in (
            "setup", "metrics", "calibration", "confusion", "classes", "errors", "unsure", "training", "recipe",
            "skipped",
        )
    ]  # fmt: skip


def test_report_csp_allows_only_its_own_script(hostile: EvaluateResult, pictures: Path, tmp_path: Path) -> None:
    write_report(hostile, create_report_context(pictures), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\"" in text
    )


def test_report_of_two_classes_has_thresholds_and_temperature(pictures: Path, tmp_path: Path) -> None:
    labels, probabilities = create_outputs(40, 2, 0.8)
    files = [path.name for path in pictures.iterdir()]
    evaluation = create_evaluation(("ill", "well"), [files[i % 5] for i in range(40)], labels, probabilities)
    scaling = TemperatureScaling(1.25, "val", 80, 0.5, 0.4, 0.1, 0.05, Path("new.pt"))
    threshold = dataclasses.replace(evaluation.thresholds[0], chosen_on="test")
    evaluation = dataclasses.replace(evaluation, scaling=scaling, thresholds=(threshold, evaluation.thresholds[1]))
    write_report(evaluation, create_report_context(pictures), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "best precision at a recall of at least 95.0%" in text
    assert "are measured on the same images. Expect worse results on other images." in text
    assert (
        "Temperature 1.2500, fitted on 80 images of val. On these images the log loss changes from 0.5000 to 0.4000 "
        "and the calibration error from 0.100 to 0.050." in text
    )
    counts = [f">{count}<small>" for row in evaluation.confusion for count in row]
    assert all(count in text for count in counts)
    assert 'id="training"' not in text
    assert "Undefined for these images." in text
    assert all(info.description in text for name, info in METRIC_INFO.items() if name != "top_5_accuracy")


def test_report_shows_missing_images(hostile: EvaluateResult, pictures: Path, tmp_path: Path) -> None:
    missing = dataclasses.replace(hostile.worst[0], path="gone.jpg")
    evaluation = dataclasses.replace(hostile, worst=(missing, *hostile.worst[1:]), unsure=())
    write_report(evaluation, create_report_context(pictures), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This image can no longer be read: it cannot be opened (No such file or directory)." in text
    assert text.count("<img ") == 9
    assert 'id="unsure"' not in text


def test_write_report_is_deterministic(hostile: EvaluateResult, pictures: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        (tmp_path / name).write_text("old")
        write_report(hostile, create_report_context(pictures, create_metrics()), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_summarize_accuracy_compares_with_majority_class() -> None:
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    evaluation = create_evaluation(("a", "b"), ["x"] * 4, labels, probabilities)
    assert summarize_accuracy(evaluation) == (
        "Accuracy 50.0% (95% interval 15.0% to 85.0%) on 4 images. Always predicting the most frequent class, "
        "\u2068a\u2069, gives 75.0%. The classifier does not exceed this baseline."
    )
    better = dataclasses.replace(evaluation, accuracy=0.8)
    assert summarize_accuracy(better).endswith("gives 75.0%.")


def test_describe_confidence_judges_the_difference() -> None:
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    overconfident = create_evaluation(("a", "b"), ["x"] * 4, labels, probabilities)
    assert describe_confidence(overconfident) == "Mean confidence 90.0%, accuracy 50.0%: the model is overconfident."
    underconfident = create_evaluation(("a", "b"), ["x"] * 40, np.zeros(40, int), np.tile([0.7, 0.3], (40, 1)))
    assert describe_confidence(underconfident).endswith(": the model is underconfident.")
    fair = create_evaluation(("a", "b"), ["x"] * 40, np.arange(40) // 28, np.tile([0.7, 0.3], (40, 1)))
    assert describe_confidence(fair).endswith(": no significant difference.")


def test_describe_intervals_names_methods() -> None:
    accuracy = Metric("accuracy", 0.5, 0.4, 0.6, "wilson")
    f1 = Metric("macro_f1", 0.5, 0.4, 0.6, "bca")
    assert describe_intervals((accuracy, f1)) == (
        "Wilson intervals for accuracy, BCa bootstrap intervals over the images for all other metrics."
    )
    top_5 = Metric("top_5_accuracy", 0.5, 0.4, 0.6, "wilson")
    assert describe_intervals((accuracy, top_5, f1)).startswith("Wilson intervals for accuracy and top-5 accuracy, ")
    assert describe_intervals((accuracy, Metric("macro_f1", 1.0, None, None, "bca"))).endswith(
        "No interval (–) is given if all resamples give the same value, or if the bootstrap is too biased, which "
        "happens with few images per class."
    )


def read_palette(dark: bool) -> dict[str, tuple[int, ...]]:
    css = (resources.files(report.__package__ or "") / "templates/report.css").read_text(encoding="utf-8")
    block = css.split("prefers-color-scheme: dark")[1] if dark else css
    found = re.findall(r"--(\w+): #(\w{6});", block.partition("}")[0])
    return {name: tuple(bytes.fromhex(value)) for name, value in found}


def contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """Return the contrast of two colors as defined by WCAG 2."""

    def measure(colour: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((measure(one), measure(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_report_colors_have_contrast(dark: bool) -> None:
    palette = read_palette(dark)
    for ground in ("paper", "panel"):
        for name in ("ink", "soft", "blue", "orange"):
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
    for tint in ("correct", "error"):
        for fraction in np.linspace(0, 1, 21):
            mixed = tuple(
                fraction * channel + (1 - fraction) * paper
                for channel, paper in zip(palette[tint], palette["paper"], strict=True)
            )
            assert contrast(palette["ink"], mixed) >= 4.5, (tint, fraction)
    for colour in (CORRECT_COLOR, ERROR_COLOR):
        assert contrast(colour, palette["paper"]) >= 3


def test_evaluate_command_writes_a_report_that_opens(
    unicode_run: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, browser: Browser
) -> None:
    monkeypatch.chdir(unicode_run)
    target = tmp_path / "report.html"
    done = ftcli("evaluate", "runs/photos/best_loss.pt", "--report", target, "--json")
    assert (done.code, done.json["report"]) == (0, str(target))
    document, console = browser.open(target)
    assert console == []
    page = Page(document)
    text = "".join(page.texts)
    for name in (
        *UNICODE_CLASS_NAMES,
        "name: photos",
        "Dotted lines mark the start of a stage",
        *{example["path"] for example in done.json["worst"]},
    ):
        assert name in text
    assert f"Accuracy {done.json['accuracy']:.1%} (95% interval " in text
    assert len(page.find("img")) == len(done.json["worst"]) + len(done.json["unsure"]) > 5
    assert len(page.find("td")) > 60
