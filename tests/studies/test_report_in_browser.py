"""Promises of the report in a browser: it opens from a file without a network, and shows what was recorded."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from splitrank.studies.report import read_runs, write_report
from tests.records import records_of
from tests.studies.written_runs import HOSTILE, make_run, records, round_record, sitting_out

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@pytest.fixture
def browser(tmp_path):
    """Debian's Chromium, its log and its network events switched on."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        message = "chromium and chromedriver must be on the PATH; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With both paths given Selenium looks for no driver of its own.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=paths[1]))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def report(tmp_path) -> Path:
    """Two runs: one whose name is markup, with a client that sits out and a round for nobody; one shorter."""
    lines = records(5)
    lines[3]["clients"][1] = sitting_out(1, binding="energy")
    nobody = [sitting_out(client, binding="energy") for client in range(3)]
    lines[4] = round_record(4, nobody, status="infeasible", rank=0, factor_averaging_error=None)
    labels = ["good", HOSTILE]
    first = make_run(tmp_path / "first", lines, labels=labels)
    second = make_run(tmp_path / "second", records(3), "adapter.rank=4", "budget.latency_s=110", labels=labels)
    runs, _ = read_runs([first, second])
    object.__setattr__(runs[0], "name", HOSTILE)  # a folder's name cannot hold "/"
    write_report(runs, tmp_path / "report.html", f"Report {HOSTILE}")
    return tmp_path / "report.html"


def open_page(browser, path: Path) -> None:
    browser.get(path.as_uri())
    assert browser.execute_script("return document.querySelectorAll('.js-plotly-plot').length") == 10


def width_beyond_the_window(browser) -> int:
    return browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")


def set_size(browser, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def keep_screenshot(browser, name: str) -> None:
    """Where SPLITRANK_SCREENSHOTS names a folder, leave a picture of the whole page there."""
    folder = os.environ.get("SPLITRANK_SCREENSHOTS")
    if folder:
        import base64

        picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder, f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


def test_opens_without_errors_and_asks_for_nothing(browser, report):
    open_page(browser, report)
    keep_screenshot(browser, "desktop-light")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert report.as_uri() in urls  # beside it the browser loads a start page of its own, chrome:
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))] == []


def test_the_charts_hold_what_was_recorded(browser, report, tmp_path):
    open_page(browser, report)
    drawn = browser.execute_script(
        "return Object.fromEntries(Array.from(document.querySelectorAll('.js-plotly-plot'), (chart) =>"
        " [chart.id, chart.data.map(({x, y, name}) => ({x, y, name}))]))"
    )
    runs = [records_of(tmp_path / name) for name in ("first", "second")]
    for key, field in (("accuracy", "accuracy"), ("rank", "rank"), ("averaging", "factor_averaging_error")):
        for trace, run in zip(drawn[f"chart-{key}"], runs, strict=True):
            assert trace["x"] == [record["round"] for record in run]
            assert trace["y"] == [record[field] for record in run]
    for key, field in (("latency", "latency_s"), ("energy", "energy_j"), ("uplink", "uplink_bits")):
        clients = [(run, client) for run in runs for client in range(3)]
        for trace, (run, client) in zip(drawn[f"chart-{key}"], clients, strict=False):
            assert trace["y"] == [record["clients"][client].get(field) for record in run]


def until(holds: Callable[[], object]) -> None:
    """Wait for what follows an event that the browser delivers when it has time."""
    end_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def hover(browser, key: str, selector: str) -> str:
    from selenium.webdriver import ActionChains

    def labels() -> list:
        return browser.find_elements("css selector", f"#chart-{key} .hovertext")

    found = browser.find_elements("css selector", f"#chart-{key} {selector}")
    point = next(one for one in found if one.size["height"] > 3)  # a bar of 0 cannot be pointed at
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    until(labels)
    return " ".join(label.text for label in labels())


def test_hovering_shows_the_value_with_its_unit(browser, report):
    open_page(browser, report)
    shown = hover(browser, "binding", ".barlayer .point path")
    assert re.search(r"limited by (latency|energy)\s*round \d\s*\d clients?$", shown.strip())
    browser.find_elements("css selector", ".legend button")[1].click()  # its points lie on those of the first run
    shown = hover(browser, "latency", ".scatterlayer .trace .point")
    client = int(re.search(rf"{re.escape(HOSTILE)}, client (\d)", shown)[1])
    assert "round 1" in shown
    assert f"{100.123456789 + client + 1 / 7:.2f} s; budget 120 s" in shown


def test_hostile_texts_are_shown_as_texts(browser, report):
    open_page(browser, report)
    assert HOSTILE in browser.title
    for selector in ("h1", "header p", ".legend button", "tbody th"):
        assert HOSTILE in browser.find_element("css selector", selector).text
    assert browser.execute_script("return document.querySelectorAll('body img, main b').length") == 0
    hover(browser, "accuracy", ".scatterlayer .trace .point")
    assert browser.execute_script("return document.querySelectorAll('body img').length") == 0


def test_the_legend_hides_a_run_in_every_chart(browser, report):
    open_page(browser, report)
    visible = (
        "return Array.from(document.querySelectorAll('.js-plotly-plot'), (chart) =>"
        " chart.data.filter((trace) => trace.visible && trace.meta.line === 0).length)"
    )
    before = browser.execute_script(visible)
    assert all(before)
    button = browser.find_element("css selector", ".legend button")
    button.click()
    assert browser.execute_script(visible) == [0] * 10
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert browser.execute_script(visible) == before


def test_one_button_hides_and_shows_many_runs(browser, tmp_path):
    folders = [make_run(tmp_path / f"r{rank}", records(2), f"adapter.rank={rank}") for rank in range(1, 7)]
    runs, _ = read_runs(folders)
    write_report(runs, tmp_path / "report.html", "Many")
    open_page(browser, tmp_path / "report.html")
    shown = (
        "return [document.querySelectorAll('.legend [aria-pressed=true]').length,"
        " document.querySelector('#chart-accuracy').data.filter((trace) => trace.visible).length]"
    )
    all_of_them, first = browser.find_element("css selector", ".legend .all"), ".legend [data-line='0']"
    assert browser.execute_script(shown) == [6, 6]
    all_of_them.click()
    assert browser.execute_script(shown) == [0, 0]
    browser.find_element("css selector", first).click()
    assert browser.execute_script(shown) == [1, 1]
    all_of_them.click()
    assert browser.execute_script(shown) == [6, 6]


def same(ones: list[str], others: list[str]) -> list[bool]:
    return [one == other for one, other in zip(ones, others, strict=True)]


def test_dark_mode_changes_page_and_charts(browser, report):
    open_page(browser, report)
    colours = (
        "const chart = document.querySelector('.js-plotly-plot');"
        "return [getComputedStyle(document.body).backgroundColor, chart._fullLayout.paper_bgcolor,"
        " chart.data[0].line.color, getComputedStyle(chart.querySelector('.main-svg')).backgroundColor]"
    )
    light = browser.execute_script(colours)
    for scheme, expected_same in (("dark", False), ("light", True)):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        until(lambda wanted=expected_same: same(light, browser.execute_script(colours)) == [wanted] * 4)
        if scheme == "dark":
            keep_screenshot(browser, "desktop-dark")


@pytest.mark.parametrize("width", [360, 768])
def test_no_window_is_too_narrow(browser, report, width):
    set_size(browser, width, 740)
    open_page(browser, report)
    assert width_beyond_the_window(browser) <= 0
    keep_screenshot(browser, f"width-{width}")
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert width_beyond_the_window(browser) <= 0
    widths = browser.execute_script(
        "return Array.from(document.querySelectorAll('.js-plotly-plot .main-svg'),"
        " (one) => one.getBoundingClientRect().right)"
    )
    assert max(widths) <= width


def test_charts_follow_the_window(browser, report):
    open_page(browser, report)
    set_size(browser, 500, 800)
    from selenium.webdriver.support.wait import WebDriverWait

    right = "return document.querySelector('.js-plotly-plot .main-svg').getBoundingClientRect().right"
    WebDriverWait(browser, 5).until(lambda _: browser.execute_script(right) <= 500)
    assert width_beyond_the_window(browser) <= 0
