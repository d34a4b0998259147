"""The page in a real browser: chromium, driven by selenium, without a network."""

import base64
import json
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from report.conftest import make_predictions, save_session

from g2l_plugin.report.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("no chromium and chromedriver (Debian: chromium-driver)", allow_module_level=True)
webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install '.[browser]'"
)

LONG = "hf-hub:an-organisation-of-a-hospital/breast_vitl14_distilled_from_H-optimus-0_seed2"
MODELS = {  # name: (accuracy, parameters, device, tiles/s)
    "teacher": (0.9, 1_134_800_000, "NVIDIA H200", 300.0),
    "start": (0.7, 303_700_000, "NVIDIA H200", 1100.0),
    "after <b>": (0.88, 303_700_000, "NVIDIA H200", 1101.0),
    LONG: (0.86, 22_100_000, "NVIDIA H200", 9800.0),
    "small": (0.6, 5_500_000, "CPU (2 threads)", 41.5),
}
TASKS = ("bach", "crc", "patch_camelyon", "tiger")
DRAWN = "bach"
"""The task with predictions and coordinates of tiles."""

CONTRAST = 4.5
"""Least contrast of text with its background: WCAG 2.2, success criterion 1.4.3, level AA."""


def make_results(logs: Path) -> None:
    """Five models on five tasks, with all that a page can show."""
    for number, (model, (accuracy, parameters, device, speed)) in enumerate(MODELS.items()):
        facts = {
            "sha256": f"{number}" * 64,
            "parameters": parameters,
            "flops": 542 * parameters,
            "embedding_dim": 1024,
            "input_size": 224,
            "batch_size": 256,
            "device": device,
            "tiles_per_second": speed,
            "peak_memory_bytes": 4_200_000_000,
        }
        common = {"model": model, "facts": facts}
        for place, task in enumerate(TASKS):
            own = accuracy - 0.03 * place + 0.05 * ((number + place) % 3)
            robustness = {f"RobustnessIndex/k={k}": own + k / 10 for k in (3, 5, 10)}
            values = {"KNNAccuracy": own, "LogisticAUROC": own + 0.02, "LinearCKA": own}
            save_session(
                logs / f"{number} {task}" / "offline",
                task=task,
                head={"MulticlassAccuracy": [own, own + 0.02, own - 0.01]},
                values=values | (robustness if task != "crc" else {}),
                intervals={
                    name: {"low": value - 0.1, "high": value + 0.1}
                    for name, value in (values | robustness).items()
                },
                undefined={"RobustnessIndex/k=5": "all tiles are of one centre"}
                if task == "crc"
                else {},
                predictions=make_predictions(accuracy, seed=number) if task == DRAWN else None,
                classes=["benign", "malignant"],
                **common,
            )
        save_session(
            logs / f"{number} hest" / "offline",
            task="hest_idc",
            values={"GenePearson/pca_ridge": accuracy - 0.4},
            **common,
        )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report, in a folder whose name needs quoting in an address."""
    root = tmp_path_factory.mktemp("in browser")
    make_results(root / "logs")
    write_report([str(root / "logs")], root / "a report")
    return root / "a report"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a network."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # In a container there is neither a sandbox nor much shared memory.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    home = str(tmp_path_factory.mktemp("home"))  # it leaves files in all of these
    options.add_argument(f"--user-data-dir={home}")
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), home)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER, env=os.environ | places))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, report):
    """A function that opens the page: `show(width=1280, scheme="light", media="screen")`."""

    def open_page(width: int = 1280, scheme: str = "light", media: str = "screen"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        emulated = {"media": media, "features": features}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
        browser.get((report / "report.html").as_uri())
        return browser

    return open_page


def test_the_page_loads_nothing_and_the_console_stays_empty(show):
    browser = show()
    entries = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert not [name for name in browser.execute_script(entries) if not name.startswith("data:")]
    assert browser.get_log("browser") == []
    browser.execute_script("console.warn('seen')")
    assert "seen" in browser.get_log("browser")[0]["message"]


def test_every_link_leads_to_a_heading_below_the_bar_or_to_a_file_that_opens(show, report):
    browser = show()
    links = browser.execute_script(
        "return [...document.querySelectorAll('a[href]')].map(a => [a.href, a.download !== ''"
        " || a.hasAttribute('download')])"
    )
    page = browser.current_url
    anchors = {urldefrag(link).fragment for link, _ in links if urldefrag(link).url == page}
    files = {link for link, _ in links if urldefrag(link).url != page}
    assert {"overview", "results", "size", "differences", "embeddings", "sources"} <= anchors
    for anchor in anchors:
        # Clicked as a reader does; the bar at the top must not cover where it leads.
        place = browser.execute_script(
            """
            document.querySelector(`a[href="#${arguments[0]}"]`).click();
            const target = document.getElementById(arguments[0]);
            const bar = document.querySelector("nav").getBoundingClientRect();
            return [target.getBoundingClientRect().top, bar.bottom, innerHeight,
                    scrollY + innerHeight >= document.documentElement.scrollHeight - 1];
            """,
            anchor,
        )
        top, bar, height, is_at_end = place
        assert bar - 1 <= top < height and (top < 120 or is_at_end), anchor
    downloads = {link for link, is_download in links if is_download}
    assert {Path(unquote(urlsplit(link).path)).name for link in downloads} == {"report.csv"}
    opened = {Path(unquote(urlsplit(link).path)) for link in files - downloads}
    assert {path.name for path in opened} == {
        "results.json",
        "test.json",
        "facts.json",
        "offline",
    }
    for link in sorted(files - downloads):
        path = Path(unquote(urlsplit(link).path))
        browser.get(link)
        shown = browser.execute_script("return document.body.innerText")
        if path.is_dir():
            assert "results.json" in shown
        else:
            assert json.loads(shown) == json.loads(path.read_text()), path


def test_the_download_is_report_csv(show, report, tmp_path):
    browser = show()
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    browser.execute_script("document.querySelector('a[download]').click()")
    saved = tmp_path / "report.csv"
    for _ in range(100):
        if saved.is_file():
            break
        time.sleep(0.05)
    assert saved.read_bytes() == (report / "report.csv").read_bytes()


def test_on_a_phone_nothing_is_wider_than_the_screen_and_all_can_be_read(show):
    browser = show(width=390)
    width = "return document.scrollingElement.scrollWidth"
    assert browser.execute_script(width) <= 390
    # A word that breaks in two is one that nobody reads.
    broken = browser.execute_script(
        """
        const lines = node => {
          const range = document.createRange();
          range.selectNodeContents(node);
          return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
        };
        return [...document.querySelectorAll("th:first-child")].flatMap(th =>
          [...th.childNodes].filter(node => node.nodeType === 3 &&
            /^(Model|teacher|start|small)$/.test(node.data.trim()) && lines(node) > 1)
          ).map(node => node.data);
        """
    )
    assert not broken
    text = "return [...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect())"
    heights = [box["height"] for box in browser.execute_script(text)]
    assert heights and min(heights) > 9


def test_no_text_of_a_plot_is_cut_at_its_edge(show):
    cut = show().execute_script(
        """
        return [...document.querySelectorAll(".plot svg")].flatMap(svg => {
          const outer = svg.getBoundingClientRect();
          return [...svg.querySelectorAll("text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < outer.left - 1 || box.right > outer.right + 1;
          }).map(text => text.textContent);
        });
        """
    )
    assert not cut
    titles = "return document.querySelector('#embeddings .plot').textContent"
    # In full, over several lines: another seed has another last letter.
    assert LONG in re.sub(r"\s", "", show().execute_script(titles))


def test_a_long_name_of_a_model_pushes_no_number_out_of_the_overview(show):
    browser = show()
    box = browser.execute_script(
        "const box = document.querySelector('#overview .scroll');"
        "return [box.scrollWidth, box.clientWidth]"
    )
    assert box[0] <= box[1]


@pytest.mark.parametrize(
    ("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")]
)
def test_text_stands_out_from_its_background(show, scheme, media):
    found = show(scheme=scheme, media=media).execute_script(
        """
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
        const rgba = colour => {
          canvas.clearRect(0, 0, 1, 1);
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const behind = element => {
          for (; element; element = element.parentElement) {
            const colour = rgba(getComputedStyle(element).backgroundColor);
            if (colour[3] === 255) return colour;
            if (colour[3] > 0) throw new Error("a background that shines through");
          }
          return [255, 255, 255, 255];
        };
        const found = [];
        for (const element of document.querySelectorAll("body *")) {
          const own = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
          if (!own.length || !element.getClientRects().length) continue;
          const style = getComputedStyle(element);
          const colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
          found.push([element.tagName.toLowerCase(), own[0].data.trim(), rgba(colour),
                      behind(element)]);
        }
        return found;
        """
    )
    assert {"h1", "h2", "h3", "th", "td", "a", "text", "small"} <= {tag for tag, *_ in found}
    poor = [
        (tag, text, round(ratio, 2))
        for tag, text, colour, background in found
        if (ratio := _contrast(colour, background)) < CONTRAST
    ]
    assert not poor


def _contrast(*colours: list[int]) -> float:
    """Contrast ratio of two colours (red, green, blue, alpha of 255): WCAG 2.2's formula."""
    luminances = []
    for *channels, alpha in colours:
        assert alpha == 255
        parts = [channel / 255 for channel in channels]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    low, high = sorted(luminances)
    return (high + 0.05) / (low + 0.05)


def test_paper_cuts_no_row_plot_or_paragraph(show):
    browser = show(media="print", scheme="dark")
    rules = browser.execute_script(
        """
        const rule = (what, name) => [...document.querySelectorAll(what)].map(
          element => getComputedStyle(element)[name]);
        return [rule("tr, figure, .notes, .about, footer", "breakInside"),
                rule("h2, h3, .about, .key", "breakAfter"), rule(".scroll, .plot", "maxHeight"),
                rule("nav", "display"), rule("section, .plots", "display")];
        """
    )
    inside, after, heights, bar, blocks = map(set, rules)
    assert (inside, after) == ({"avoid"}, {"avoid"}) and heights == bar == {"none"}
    assert blocks == {"block"}  # a heading does not stay with the first item of a flex box
    settings = {"preferCSSPageSize": True, "printBackground": True}
    printed = browser.execute_cdp_cmd("Page.printToPDF", settings)
    pdf = base64.b64decode(printed["data"])
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b(?!s)", pdf)) > 3
    assert {(round(float(w)), round(float(h))) for w, h in sizes} == {(842, 595)}
