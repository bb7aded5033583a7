"""Reports open anywhere, say what was measured in plain words, and show any name as text."""

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

from ftcli.analysis import report
from ftcli.analysis.report.page import check_report, write_report
from ftcli.analysis.report.plots import HIT, MISS
from ftcli.analysis.report.sentences import MEANINGS, sum_up, tell_confidence, tell_wilsons
from ftcli.errors import RecipeError
from ftcli.results import Evaluation, Example, Figure, Scaling
from tests.analysis.conftest import Browser, imagine_outputs, make_background, make_evaluation, make_rows
from tests.conftest import SCRIPTS, Ftcli

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
    """A page's elements in order, with their attributes, and the text of each."""

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
    """A folder of images whose names are those of the hostile classes, as far as file systems take them."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(HOSTILE):
        file = os.fsencode(name.replace("/", "_"))[:200] + f" {number}.jpg".encode()
        shutil.copy(photo_folder / "test/flower/20.jpg", root / os.fsdecode(file))
    return root


@pytest.fixture(scope="session")
def hostile(pictures: Path) -> Evaluation:
    """Eleven classes with names that would break a page that trusted them; one has no image."""
    files = sorted(path.name for path in pictures.iterdir())
    labels, probabilities = imagine_outputs(220, len(HOSTILE), 0.7)
    labels = np.where(labels == 3, 4, labels)
    found = make_evaluation(HOSTILE, [files[i % len(files)] for i in range(220)], labels, probabilities)
    return dataclasses.replace(found, skipped=("broken <i>.jpg: is empty (0 bytes)",), views=4)


def test_names_are_text_and_the_page_needs_nothing(
    hostile: Evaluation, pictures: Path, tmp_path: Path, browser: Browser
) -> None:
    target = tmp_path / "report.html"
    write_report(hostile, make_background(pictures, make_rows()), target)
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


LOOK = """
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
    seen.fitted = document.querySelector(".whole svg").getBoundingClientRect().width <= innerWidth;
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


def look(page: Path, browser: Browser, *flags: str) -> list[dict[str, Any]]:
    """What a script finds in a page at three widths; the page's policy is kept, and lets this script in too."""
    own = LOOK.partition("<script>")[2].partition("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{allowed}' ")
    page.with_name("copy.html").write_text(text.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    frames = "".join(f'<iframe src="copy.html" style="width:{width}px;border:0"></iframe>' for width in WIDTHS)
    page.with_name("frames.html").write_text(FRAMES + frames, encoding="utf-8")
    document, console = browser.open(page.with_name("frames.html"), *flags)
    assert console == []
    (lines,) = [text for text in Page(document).texts if text.startswith("{")]
    return sorted((json.loads(line) for line in lines.splitlines()), key=lambda seen: int(seen["width"]))


def test_tables_sort_and_no_width_scrolls(
    hostile: Evaluation, pictures: Path, tmp_path: Path, browser: Browser
) -> None:
    write_report(hostile, make_background(pictures, make_rows()), tmp_path / "report.html")
    found = look(tmp_path / "report.html", browser, "--blink-settings=preferredColorScheme=0")
    assert [seen["width"] for seen in found] == list(WIDTHS)
    for seen in found:
        assert seen["scroll"] == seen["width"]
        assert all(width <= seen["width"] for width in seen["plots"])
        assert seen["paper"] == "rgb(20, 24, 29)"  # dark
        assert seen["title"] == "best_loss.pt on test"
        assert (seen["opened"], seen["closed"]) == (0, 0)
        counts = sorted(int(text) for text in seen["before"])
        names, focused, states = seen["up1"]
        assert focused
        assert [int(text) for text in names] == counts
        assert states == [None, "ascending", *[None] * 6]
        assert seen["down1"] == [[str(count) for count in reversed(counts)], "descending"]
        assert seen["up0"][0].index("class 9") == seen["up0"][0].index("class 10") - 1
        assert seen["down0"][0] == seen["up0"][0][::-1]
        assert seen["up4"][0][-1] == seen["down4"][0][-1] == "–"  # the class without images is last both times
        assert seen["up4"][0][:-1] == seen["down4"][0][:-1][::-1]


def test_a_hundred_classes_can_be_seen_and_printed(pictures: Path, tmp_path: Path, browser: Browser) -> None:
    files = [path.name for path in pictures.iterdir()]
    labels, probabilities = imagine_outputs(3000, 100, 0.8)
    evaluation = make_evaluation(
        [f"class {i}" for i in range(100)], [files[i % len(files)] for i in range(3000)], labels, probabilities
    )
    target = tmp_path / "report.html"
    write_report(evaluation, make_background(pictures), target)
    assert target.stat().st_size < 1_500_000
    for seen in look(target, browser):
        assert seen["scroll"] == seen["width"]
        assert max(seen["plots"]) > 1400  # in a box of its own, with letters that can be read
        assert (seen["fitted"], seen["pressed"]) == (True, "true")
        assert seen["paper"] == "rgb(255, 255, 255)"
    browser.open(target, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())) > 3


def test_the_page_is_made_for_every_reader(hostile: Evaluation, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    shutil.copy(photo_folder / "test/china/20.jpg", tmp_path / "many/cat.jpg")
    examples = (Example("many/cat.jpg", HOSTILE[2], HOSTILE[4], 0.984), Example("many/cat.jpg", "a", "a", 0.51))
    evaluation = dataclasses.replace(hostile, worst=examples[:1], unsure=examples[1:])
    write_report(evaluation, make_background(tmp_path, make_rows()), tmp_path / "report.html")
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
        "\u2068many/cat.jpg\u2069: truly \u2068قطة\u2069, given \u2068two\\nlines \\u202e turned\u2069 with "
        "98.4\N{NO-BREAK SPACE}%"
    )
    assert page.find("img")[1]["alt"] == (
        "\u2068many/cat.jpg\u2069: rightly given \u2068a\u2069 with 51.0\N{NO-BREAK SPACE}%"
    )
    assert [link["href"] for link in page.find("a")] == ["#main"] + [
        f"#{place}"
        for place in (
            "what", "figures", "calibration", "confusion", "classes", "mistakes", "doubts", "training", "recipe",
            "skipped",
        )
    ]  # fmt: skip


def test_the_policy_lets_in_the_own_script_alone(hostile: Evaluation, pictures: Path, tmp_path: Path) -> None:
    write_report(hostile, make_background(pictures), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\"" in text
    )


def test_two_classes_have_thresholds_and_a_temperature(pictures: Path, tmp_path: Path) -> None:
    labels, probabilities = imagine_outputs(40, 2, 0.8)
    files = [path.name for path in pictures.iterdir()]
    evaluation = make_evaluation(("ill", "well"), [files[i % 5] for i in range(40)], labels, probabilities)
    scaling = Scaling(1.25, "val", 80, 0.5, 0.4, 0.1, 0.05, Path("new.pt"))
    threshold = dataclasses.replace(evaluation.thresholds[0], chosen_on="test")
    evaluation = dataclasses.replace(evaluation, scaling=scaling, thresholds=(threshold, evaluation.thresholds[1]))
    write_report(evaluation, make_background(pictures), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "best precision at a recall of at least 95.0\N{NO-BREAK SPACE}%" in text
    assert "look better here than they will be on new ones" in text
    assert (
        "A temperature of 1.250 was fitted on 80 images of val: there the log loss went from 0.500 to 0.400, and the "
        "expected calibration error from 0.100 to 0.050." in text
    )
    counts = [f">{count}<small>" for row in evaluation.confusion for count in row]
    assert all(count in text for count in counts)
    assert 'id="training"' not in text
    assert "These images do not define it." in text
    assert all(meaning.words in text for name, meaning in MEANINGS.items() if name != "top_5_accuracy")


def test_an_image_that_has_gone_is_said_so_in_its_place(hostile: Evaluation, pictures: Path, tmp_path: Path) -> None:
    gone = dataclasses.replace(hostile.worst[0], path="gone.jpg")
    evaluation = dataclasses.replace(hostile, worst=(gone, *hostile.worst[1:]), unsure=())
    write_report(evaluation, make_background(pictures), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This image can no longer be shown: it cannot be opened (No such file or directory)." in text
    assert text.count("<img ") == 9
    assert 'id="doubts"' not in text


def test_the_same_inputs_give_the_same_bytes(hostile: Evaluation, pictures: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        (tmp_path / name).write_text("old")
        write_report(hostile, make_background(pictures, make_rows()), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("report.pdf", "--report: report.pdf does not end in .html or .htm; give such a name"),
        ("no/report.html", "--report: the folder no is not there; make it, or give another place"),
        ("taken.html", "--report: taken.html is a folder, link or device; give the name of a file"),
    ],
)
def test_a_place_that_will_not_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.html").mkdir()
    check_report(Path("report.HTM"))
    with pytest.raises(RecipeError) as error:
        check_report(Path(name))
    assert error.value.faults == (sentence,)


def test_sentences_say_what_was_measured() -> None:
    labels, sure = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    evaluation = make_evaluation(("a", "b"), ["x"] * 4, labels, sure)
    assert sum_up(evaluation).replace("\N{NO-BREAK SPACE}", " ") == (
        "It is right for 50.0 % of 4 images (95 %: 15.0 to 85.0 %); always answering ‘\u2068a\u2069’ would be "
        "right for 75.0 %, so this is no better."
    )
    assert tell_confidence(evaluation).replace("\N{NO-BREAK SPACE}", " ") == (
        "On average it holds its answers 90.0 % probable, and 50.0 % of them are right: it is overconfident."
    )
    assert tell_wilsons(evaluation.figures) == "The interval of accuracy is"
    top = Figure("top_5_accuracy", 0.5, 0.4, 0.6, "wilson")
    assert tell_wilsons((*evaluation.figures, top)) == "The intervals of accuracy and top-5 accuracy are"
    right = make_evaluation(("a", "b"), ["x"] * 40, np.zeros(40, int), np.tile([0.7, 0.3], (40, 1)))
    assert tell_confidence(right).endswith("it is underconfident.")
    fair = make_evaluation(("a", "b"), ["x"] * 40, np.arange(40) // 28, np.tile([0.7, 0.3], (40, 1)))
    assert tell_confidence(fair).endswith("are right: no difference beyond chance.")


def read_palette(dark: bool) -> dict[str, tuple[int, ...]]:
    css = (resources.files(report.__package__ or "") / "templates/report.css").read_text(encoding="utf-8")
    block = css.split("prefers-color-scheme: dark")[1] if dark else css
    found = re.findall(r"--(\w+): #(\w{6});", block.partition("}")[0])
    return {name: tuple(bytes.fromhex(value)) for name, value in found}


def contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """The contrast of two colours as WCAG 2 defines it."""

    def measure(colour: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((measure(one), measure(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_can_be_read(dark: bool) -> None:
    palette = read_palette(dark)
    for ground in ("paper", "panel"):
        for name in ("ink", "soft", "blue", "orange"):
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
    for tint in ("hit", "miss"):
        for share in np.linspace(0, 1, 21):
            mixed = tuple(
                share * one + (1 - share) * two for one, two in zip(palette[tint], palette["paper"], strict=True)
            )
            assert contrast(palette["ink"], mixed) >= 4.5, (tint, share)
    for colour in (HIT, MISS):
        assert contrast(colour, palette["paper"]) >= 3


def test_the_command_writes_a_report_that_opens(
    many_scripts: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, browser: Browser
) -> None:
    monkeypatch.chdir(many_scripts)
    target = tmp_path / "report.html"
    done = ftcli("evaluate", "runs/photos/best_loss.pt", "--report", target, "--json")
    assert (done.code, done.json["report"]) == (0, str(target))
    document, console = browser.open(target)
    assert console == []
    page = Page(document)
    text = "".join(page.texts)
    for name in (*SCRIPTS, "name: photos", "How training went", *{example["path"] for example in done.json["worst"]}):
        assert name in text
    assert f"It is right for {done.json['accuracy']:.1%}".replace("%", "\N{NO-BREAK SPACE}%") in text
    assert len(page.find("img")) == len(done.json["worst"]) + len(done.json["unsure"]) > 5
    assert len(page.find("td")) > 60
