"""The page at /ui in headless Chromium.

These tests need `chromium` and `chromedriver` (Debian: apt-get install chromium chromium-driver) and selenium, which
`make test-ui` installs. Where one of them is missing they are skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.bundled import find
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, Client, Make, port_of, running

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; `make test-ui` does that")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with chromedriver here")

EVIL = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
EMOTIONS = [EVIL, *(f"label {i}" for i in range(27))]


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any, port: int) -> None:
        self.driver, self.port = driver, port

    def open(self, width: int = 1200, dark: bool = False) -> Page:
        command = self.driver.execute_cdp_cmd
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        command("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("browser")
        self.driver.get(f"http://127.0.0.1:{self.port}/ui")
        return self

    def at(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return str(self.js("return document.getElementById(arguments[0]).textContent", name))

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < end, (self.text("error"), self.text("headline"))
            time.sleep(0.02)

    def ask(self, text: str, second: str = "", model: str | None = None, criterion: str | None = None) -> None:
        """Type, press the button, and wait for the answer."""
        self.until(lambda: self.all("#criterion option"))
        if model is not None:
            Select(self.at("model")).select_by_value(model)
        if criterion is not None:
            Select(self.at("criterion")).select_by_value(criterion)
        for name, value in (("text", text), ("second", second)):
            self.js("document.getElementById(arguments[0]).value = arguments[1]", name, value)
        self.js("document.getElementById('headline').textContent = ''")
        self.at("go").click()
        self.until(lambda: self.text("headline"))

    @property
    def exit_layer(self) -> int:
        """Of the table: the row that is marked, below which all rows and above which none are dimmed."""
        rows = self.js(
            "return [...document.querySelectorAll('#layers tbody tr:not(.cut)')]"
            ".map((row) => [row.cells[0].textContent, ...['exit', 'skipped'].map((it) => row.classList.contains(it))])"
        )
        places = [i for i, (_, exit, _) in enumerate(rows) if exit]
        assert len(places) == 1
        assert [skipped for *_, skipped in rows] == [i > places[0] for i in range(len(rows))]
        return int(rows[places[0]][0])

    def close(self) -> None:
        """Nothing was refused by the page's policy, and nothing failed in its scripts."""
        found = [each for each in self.driver.get_log("browser") if "status of 4" not in each["message"]]
        assert not found
        away = self.js(
            "return performance.getEntriesByType('resource').map((each) => each.name)"
            ".filter((name) => !name.startsWith(location.origin + '/ui'))"
        )
        assert away == []


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def readable(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pfengine.Engine]:
    """Tiny models with the tokenizer of the bundled checkpoint, and labels as they are given."""

    def make(names: list[str], config: dict[str, Any], **fields: Any) -> pfengine.Engine:
        config = config | {"vocab_size": 30_522, "id2label": {str(i): name for i, name in enumerate(names)}}
        made = make_checkpoint("bert", labels=len(names), config=config, **fields)
        path = Path(shutil.copytree(made, tmp_path_factory.mktemp("readable") / "out"))
        for file in find("sst2").glob("*token*"):
            shutil.copy(file, path)
        return pfengine.load(path, precision="fp32")

    return make


@pytest.fixture(scope="module")
def ranker(readable: Callable[..., pfengine.Engine]) -> pfengine.Engine:
    return readable(["score"], {"problem_type": "regression"}, criterion="patience:,3", threshold=1, seed=3)


@pytest.fixture(scope="module")
def emotions(readable: Callable[..., pfengine.Engine]) -> pfengine.Engine:
    return readable(EMOTIONS, {}, threshold=2.0)


@pytest.fixture(scope="module")
def client(sst2: pfengine.Engine, ranker: pfengine.Engine, emotions: pfengine.Engine) -> Iterator[Client]:
    limits = Limits(payload_limit=20_000)
    engines = {"sst2": sst2, "ranker": ranker, "emotions": emotions}
    with running({name: served(name, each, limits) for name, each in engines.items()}, limits) as server:
        yield Client(port_of(server))


@pytest.fixture
def page(driver: Any, client: Client) -> Iterator[Page]:
    made = Page(driver, client.port).open()
    yield made
    made.close()


def test_a_text(page: Page, sst2: pfengine.Engine) -> None:
    for text in ("a charming and often affecting journey", "it is not without charm"):
        page.ask(text)
        answer = sst2.predict([text])
        layer, label = int(answer.exit_layers[0]), sst2.labels[answer.label_ids[0]]
        assert page.exit_layer == layer
        assert page.text("headline") == f"{label} {100 * answer.probabilities[0].max():.1f}% after layer {layer} of 12"
        fewer = f"{12 / layer:.{1 if layer > 1 else 0}f}"
        assert page.text("saved").startswith(f"{12 - layer} of 12 layers not computed: {fewer} times fewer. Timed")
        assert page.all("tr.cut")[0].text == f"not computed: {12 - layer} of 12 layers"
        assert len(page.all("#layers tbody tr:not(.cut)")) == 12
        assert len(page.all(".dot")) == 11  # nothing is asked after the last layer
        shown = page.all("tr.exit .seg")
        assert [each.text for each in shown if each.text] == [f"{100 * answer.probabilities[0].max():.0f}%"]
    page.until(lambda: page.text("spoken").startswith(page.text("headline")))
    assert "held-out texts" in page.text("calibration")


def test_the_threshold_by_keyboard_number_and_drag(page: Page, client: Client, sst2: pfengine.Engine) -> None:
    text, seen = "it is not without charm", set()  # its exits grow sure one after the other
    steps = client.ask("/ui/explain", {"text": text})[1]["rows"][0]["steps"]
    page.ask(text)
    slider, number = page.at("threshold"), page.at("threshold-number")

    def check() -> None:
        threshold = page.js("return document.getElementById('threshold').getAttribute('aria-valuetext')")
        layer = page.exit_layer
        seen.add(layer)
        assert threshold.endswith(f"leaves after layer {layer} of 12")
        shown = float(number.get_attribute("value"))
        margins = [sst2.predict([text], threshold=shown * factor).exit_layers[0] for factor in (0.9995, 1.0005)]
        assert min(margins) <= layer <= max(margins)  # what is shown is rounded

    for keys in ([Keys.HOME], [Keys.END], [Keys.ARROW_LEFT] * 60, [Keys.PAGE_DOWN] * 2):
        slider.send_keys(*keys)
        check()
    for value in ("0.001", "0.06", "0.3", "0.65", *(repr(step["threshold"]) for step in steps)):
        number.clear()
        number.send_keys(value)
        assert page.exit_layer == sst2.predict([text], threshold=float(value)).exit_layers[0]
        seen.add(page.exit_layer)
    track = page.all(".track")[4]
    for offset in (-80, 0, 60):
        ActionChains(page.driver).move_to_element_with_offset(track, offset - 10, 0).click_and_hold().move_by_offset(
            10, 0
        ).release().perform()
        check()
    line = page.js("return parseFloat(document.getElementById('layers').style.getPropertyValue('--line'))")
    assert line == pytest.approx(100 * float(slider.get_attribute("value")), abs=0.1)
    page.at("reset").click()
    assert page.exit_layer == sst2.predict([text]).exit_layers[0]
    assert {1, 12} <= seen
    assert len(seen) >= 4


@pytest.mark.parametrize(
    ("criterion", "head"),
    [
        ("patience:3", "Exits in a row with the same label"),
        ("pcee:0.3", "Entropy"),
        ("confidence:0.9", "Largest probability"),
        ("elbert:0.3", "Normalised entropy"),
    ],
)
def test_other_criteria(page: Page, sst2: pfengine.Engine, criterion: str, head: str) -> None:
    page.ask("not bad", criterion=criterion)
    assert page.text("signal-head") == head
    assert page.exit_layer == sst2.predict(["not bad"], criterion=criterion).exit_layers[0]
    page.at("threshold").send_keys(Keys.ARROW_LEFT)
    shown = float(page.at("threshold-number").get_attribute("value"))
    if criterion.startswith("patience"):
        assert shown == 4
    assert (
        page.exit_layer == sst2.predict(["not bad"], criterion=criterion.split(":")[0], threshold=shown).exit_layers[0]
    )


def test_without_a_criterion_there_is_no_slider(page: Page) -> None:
    page.ask("not bad", criterion="never")
    assert page.exit_layer == 12
    assert page.text("saved") == "All 12 layers computed, nothing saved."
    assert not page.at("threshold").is_displayed()
    assert not page.at("threshold-number").is_displayed()


def test_documents_are_ranked(page: Page, ranker: pfengine.Engine) -> None:
    documents = ["a fine film", "the weather is bad", "no", EVIL, "yes " * 300]
    page.ask("is it good?", "\n".join(["", *documents, " "]), model="ranker")  # lines without text are none

    def check(threshold: int) -> None:
        answer = ranker.predict([("is it good?", each) for each in documents], threshold=threshold)
        order = np.argsort(-answer.logits[:, 0], kind="stable")
        shown = page.js("return [...document.querySelectorAll('#documents .what')].map((each) => each.textContent)")
        assert shown == [documents[i] for i in order]
        cells = [len(item.find_elements("css selector", ".done")) for item in page.all("#documents li")]
        assert cells == answer.exit_layers[order].tolist()
        assert page.text("headline") == f"Best: {documents[order[0]]}"

    check(1)
    page.at("threshold").send_keys(Keys.ARROW_LEFT)
    check(2)
    last = page.all("#documents button")[-1]
    last.send_keys(Keys.SPACE)
    assert last.get_attribute("aria-pressed") == "true"
    assert page.text("chosen").startswith(last.find_element("css selector", ".what").text.split(" ")[0])
    assert page.driver.title == "pfengine"
    assert not page.all("#result img, #result script")


def test_many_labels_and_text_that_looks_like_markup(page: Page, emotions: pfengine.Engine) -> None:
    page.ask(EVIL, model="emotions")
    assert page.text("legend").endswith("23 other labels")
    assert page.exit_layer == emotions.predict([EVIL]).exit_layers[0]
    best = emotions.predict([EVIL], criterion="never").label_ids[0]
    assert emotions.labels[best] in page.text("headline") + page.text("full")
    assert page.driver.title == "pfengine"
    assert not page.all("img, main script")
    for bar in page.all(".bar"):
        widths = page.js(
            "return [...arguments[0].children].map((each) => parseFloat(each.style.getPropertyValue('--w')))", bar
        )
        assert sum(widths) == pytest.approx(100, abs=3)  # what is too small to be seen is not drawn


@pytest.mark.parametrize("width", [360, 768, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_widths_and_colours(page: Page, width: int, dark: bool) -> None:
    page.open(width, dark)
    for text, second, model in (("word " * 300, "", "sst2"), ("W" * 500, "W" * 300, "ranker"), (EVIL, "", "emotions")):
        page.ask(text, second, model)
        assert page.js("return document.documentElement.scrollWidth <= innerWidth")
        outside = page.js(
            "return [...document.querySelectorAll('main *')].filter((each) => !each.closest('.spoken')"
            " && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 200))"
        )
        assert outside == []
    ink, paper = page.js(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        ".map((each) => each.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765)"
    )
    assert (ink > 0.8 and paper < 0.2) if dark else (ink < 0.2 and paper > 0.8)


def test_all_of_it_by_keyboard(page: Page) -> None:
    page.until(lambda: page.all("#criterion option"))
    page.at("text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.text("headline"))
    page.js("document.getElementById('model').focus()")
    visited = ["model"]
    while True:
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        focused, outline = page.js(
            "const each = document.activeElement; return [each.id, getComputedStyle(each).outlineStyle]"
        )
        if not focused or focused in visited:
            break
        assert outline == "solid", focused
        visited.append(focused)
    assert visited == ["model", "text", "second", "criterion", "go", "threshold-number", "reset", "threshold"]
    unnamed = page.js(
        "return [...document.querySelectorAll('input, select, textarea, button')].filter((each) =>"
        " !each.labels?.length && !each.ariaLabel && !each.textContent).map((each) => each.id)"
    )
    assert unnamed == []


def test_live_counts(page: Page, client: Client) -> None:
    page.until(lambda: page.text("rows") != "–")
    before = int(page.text("rows"))
    for _ in range(20):
        status, *_ = client.ask("/predict", {"inputs": "a charming journey"})
        assert status == 200
    page.until(lambda: int(page.text("rows")) == before + 20)
    page.until(lambda: float(page.text("rate")) > 0)
    assert page.at("histogram").get_attribute("aria-label").startswith("Texts that left after each layer. ")
    assert len(page.all("#histogram i")) == 12
    assert page.text("speedup").endswith("×")
    Select(page.at("model")).select_by_value("ranker")
    page.until(lambda: len(page.all("#histogram i")) == 5)


def test_what_goes_wrong_is_said(page: Page) -> None:
    page.until(lambda: page.all("#criterion option"))
    for text, expected in (("  ", "Type a text first."), ("word " * 5000, "The body has more than 20000 bytes")):
        page.js("document.getElementById('text').value = arguments[0]", text)
        page.at("go").click()
        page.until(lambda expected=expected: page.text("error") == expected)
        assert page.at("error").get_attribute("role") == "alert"
        assert page.at("error").is_displayed()
    page.ask("fine")
    assert not page.at("error").is_displayed()


def test_an_api_key_is_asked_for_and_kept_nowhere(driver: Any, sst2: pfengine.Engine) -> None:
    limits = Limits()
    with running({"sst2": served("sst2", sst2, limits)}, limits, api_key="secret") as server:
        page = Page(driver, port_of(server)).open()
        page.until(lambda: page.text("error") == "This server asks for its API key.")
        key = page.at("key")
        key.send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.text("error") == "The server does not take this API key.")
        key.clear()
        key.send_keys("secret", Keys.TAB)
        page.until(lambda: not page.at("error").is_displayed() and page.all("#criterion option"))
        page.ask("not bad")
        assert page.exit_layer == sst2.predict(["not bad"]).exit_layers[0]
        page.until(lambda: page.text("rows") != "–")
        assert page.js("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert "secret" not in page.js("return location.href + document.documentElement.outerHTML")
        page.close()
        page.open()
        page.until(lambda: page.text("error") == "This server asks for its API key.")
        assert page.at("key").get_attribute("value") == ""
