"""A report in a real browser: no errors, its pairs, search, marks, keyboard, hostile names, and 60,000 keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import remapkit

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SPEC = remapkit.TensorSpec("F32", (4,))
MAX_ROWS = 200
"""More rows than two panes of a window can show, with the spare ones."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(each)
    for each in (
        "--window-size=1400,900",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(each)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_page_load_timeout(180)
    yield found
    found.quit()


def wait(browser: Any, script: str) -> None:
    """Wait until a script is true; the time is long for slow machines and says nothing of speed."""
    WebDriverWait(browser, 120, poll_frequency=0.1).until(
        lambda each: each.execute_script(f"return {script}"), script
    )


def open_page(browser: Any, tmp_path: Path, html: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    browser.get_log("browser")
    browser.get(page.as_uri())
    wait(browser, "document.documentElement.dataset.ready === 'true' && !!document.querySelector('.row')")
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []


def text(browser: Any, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


def search(browser: Any, words: str) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    box = browser.switch_to.active_element
    assert box.get_attribute("id") == "search"
    box.send_keys(words)


def test_a_pack_is_shown_searched_and_walked(browser: Any, tmp_path: Path) -> None:
    open_page(browser, tmp_path, remapkit.report("wan22_pth").html)
    assert text(browser, "pairs") == "196 pairs"
    assert "proven for all keys" in text(browser, "verdicts")
    wait(browser, "document.querySelectorAll('#edges path').length > 0")
    search(browser, "TIME_CONV.bias")
    wait(browser, "document.querySelectorAll('#source .row mark').length > 0")
    moves = remapkit.check("wan22_pth").checks[0].plan.moves
    left = sum("time_conv.bias" in move.sources[0] for move in moves)
    right = sum("time_conv.bias" in move.target for move in moves)
    assert text(browser, "hits") == f"{left + right} hits: {left} source, {right} target"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait(browser, "document.activeElement.id === 'source' && !!document.querySelector('#source .row.active')")
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    wait(browser, "document.querySelector('#source .row.active')?.dataset.row === '1'")
    wait(browser, "!!document.querySelector('#target .row.mate') && !!document.querySelector('#edges path.hot')")
    assert "time_conv.bias" in text(browser, "detail")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(browser, "document.getElementById('hits').textContent === '' && !document.querySelector('.row.active')")
    before = browser.execute_script("return document.documentElement.dataset.theme")
    browser.find_element(By.ID, "theme").click()
    after = browser.execute_script("return document.documentElement.dataset.theme")
    assert {before, after} == {"dark", "light"}


def test_a_broken_pack_shows_its_missing_keys(browser: Any, tmp_path: Path) -> None:
    found = remapkit.report("wan22_pth", keys={"conv1.bias": SPEC}, target_keys={"conv1.bias": SPEC, "gone.w": SPEC})
    assert not found.ok
    open_page(browser, tmp_path, found.html)
    assert browser.find_element(By.CSS_SELECTOR, '.card[data-code="RK310"]').text.count("gone.w") == 1
    browser.find_element(By.CSS_SELECTOR, 'button[data-state="missing"]').click()
    wait(browser, "document.querySelectorAll('#target .row').length === 1")
    row = browser.find_element(By.CSS_SELECTOR, "#target .row").text
    assert "gone.w" in row and "missing" in row


EVIL = (
    '</script><img src=x onerror="window.hurt=1">',
    "<!--<script>",
    "q\"'&amp;.\u2028.ü😀",
    "__proto__.constructor",
    "x" * 10_000,
    "a.\u202eevil.\u05d0\u05d1.weight",
    "deep." * 2_000 + "w",
)


def test_hostile_names_do_no_harm(browser: Any, tmp_path: Path) -> None:
    rules = remapkit.loads("remapkit: 1\nname: evil\nunmatched: keep\nrules: []\n")
    open_page(browser, tmp_path, remapkit.report(rules, keys=dict.fromkeys(EVIL, SPEC)).html)
    assert browser.execute_script("return window.hurt === undefined && !document.querySelector('img')")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#source .row .key')].map(x => x.textContent)"
    )
    assert sorted(shown) == sorted(name.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e") for name in EVIL)
    browser.execute_script("document.querySelectorAll('#source .row')[4].click()")
    wait(browser, "document.querySelector('#source .row.active') !== null")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return document.getElementById('detail').textContent.includes('x'.repeat(10000))")


def test_sixty_thousand_keys_are_a_bounded_number_of_rows(browser: Any, tmp_path: Path) -> None:
    rules = remapkit.loads("remapkit: 1\nname: big\nrules:\n  - {id: all, path: 'a.{n:int}.{x}', to: 'b.{n}.{x}'}\n")
    keys = {f"a.{number}.w{number % 7}": SPEC for number in range(60_000)}
    open_page(browser, tmp_path, remapkit.report(rules, keys=keys).html)
    assert text(browser, "pairs") == "60,000 pairs"
    search(browser, "a.")
    wait(browser, "document.getElementById('hits').textContent.startsWith('60,000 hits')")
    browser.execute_script("for (const x of document.querySelectorAll('.pane')) x.scrollTop = x.scrollHeight")
    wait(browser, "!!document.querySelector('#source .row[data-row=\"59999\"]')")
    assert 0 < browser.execute_script("return document.querySelectorAll('.row').length") < MAX_ROWS
    assert browser.execute_script("return document.querySelectorAll('#edges path').length") <= MAX_ROWS


OPS = """
remapkit: 1
name: drawn
rules:
  - {id: c, concat: {dim: 1, from: ['c.a', 'c.b', 'c.c']}, to: 'c'}
  - {id: s, path: 's', split: {dim: 0, into: ['s.a', 's.b']}}
  - {id: k, path: 'k.{n:int}', stack: {dim: 0, by: n}, to: 'k'}
  - {id: u, path: 'u', unstack: {dim: 0, by: n}, to: 'u.{n}'}
  - {id: t, path: 't', to: 't2', ops: [transpose, {permute: [1, 0]}]}
  - {id: r, path: 'r', to: 'r2', ops: [{reshape: [8]}, {cast: F16}]}
drop: ['gone.{n:int}']
"""


def test_operations_are_drawn_and_dropped_keys_are_counted(browser: Any, tmp_path: Path) -> None:
    spec = remapkit.TensorSpec("F32", (4, 2))
    keys = dict.fromkeys(["c.a", "c.b", "c.c", "s", "k.0", "k.1", "u", "t", "r", "gone.0", "gone.1", "gone.2"], spec)
    found = remapkit.report(remapkit.loads(OPS), keys=keys)
    assert found.ok
    open_page(browser, tmp_path, found.html)
    wait(browser, "document.querySelectorAll('#edges .operation').length > 0")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#edges .operation')].map(x => [x.dataset.op, x.getBBox().width > 30])"
    )
    names = {"concat", "split", "stack", "unstack", "transpose", "permute", "reshape", "cast"}
    assert {name for name, wide in drawn if wide} == names
    buttons = browser.execute_script(
        "return [...document.querySelectorAll('#filters button[data-op]')].map(x => x.dataset.op)"
    )
    assert set(buttons) == names
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []
    rule = browser.find_element(By.CSS_SELECTOR, '#rules button[data-rule="6"]')
    assert rule.text.split() == ["drop[0]", "3"]
    rule.click()
    wait(browser, "document.querySelectorAll('#source .row').length === 3 && !document.querySelector('#target .row')")
    assert text(browser, "hits") == "3 hits: 3 source, 0 target"
    rule.click()
    browser.find_element(By.CSS_SELECTOR, 'button[data-op="concat"]').click()
    wait(browser, "document.querySelectorAll('#source .row').length === 3")
    assert text(browser, "hits") == "4 hits: 3 source, 1 target"


def test_what_is_left_out_is_said(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remapkit.picture.model.MAX_WITNESSES", 2)
    lines = [f"  - {{id: r{number}, path: 'a{number}', to: 'c{number // 2}'}}\n" for number in range(6)]
    rules = remapkit.loads("remapkit: 1\nname: two\nrules:\n" + "".join(lines))
    keys = dict.fromkeys([f"a{number}" for number in range(6)], SPEC)
    open_page(browser, tmp_path, remapkit.report(rules, keys=keys).html)
    assert "2 of 3 witnesses of the proof shown" in text(browser, "problems")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".card[data-fault]")) == 2
    # One closed row on the left, a thousand open ones on the right.
    rules = remapkit.loads("remapkit: 1\nname: wide\nrules:\n  - {id: all, path: 'a.{x}.w', to: 'b.{x}'}\n")
    open_page(browser, tmp_path, remapkit.report(rules, keys={f"a.n{n}x.w": SPEC for n in range(1_000)}).html)
    wait(browser, "document.querySelectorAll('#edges path.edge').length > 0")
    assert text(browser, "undrawn") == ""
    browser.find_element(By.CSS_SELECTOR, "#target .row").click()
    wait(browser, "document.getElementById('undrawn').textContent === '400 of 1,000 lines drawn'")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#edges path.edge")) == 400


def test_a_slow_click_is_a_click(browser: Any, tmp_path: Path) -> None:
    """A button held for several frames: rows that are drawn anew meanwhile are no longer what was pressed."""
    rules = remapkit.loads("remapkit: 1\nname: wide\nrules:\n  - {id: all, path: 'a.{x}.w', to: 'b.{x}'}\n")
    open_page(browser, tmp_path, remapkit.report(rules, keys={f"a.n{n}x.w": SPEC for n in range(1_000)}).html)
    row = browser.find_element(By.CSS_SELECTOR, "#target .row")
    opened = row.get_attribute("aria-expanded")
    ActionChains(browser).click_and_hold(row).pause(0.5).release().perform()
    wait(browser, f"document.querySelector('#target .row').getAttribute('aria-expanded') !== '{opened}'")


def test_the_tree_follows_the_keys_of_a_tree(browser: Any, tmp_path: Path) -> None:
    rules = remapkit.loads("remapkit: 1\nname: t\nrules:\n  - {id: all, path: 'a.{n:int}.{x}', to: 'b.{n}.{x}'}\n")
    keys = dict.fromkeys(["a.0.w", "a.1.w", "a.0.v", "a.1.v"], SPEC)
    open_page(browser, tmp_path, remapkit.report(rules, keys=keys).html)
    pane = browser.find_element(By.ID, "source")
    active = "document.querySelector('#source .row.active')"

    def press(*names: str) -> tuple[str, str, str]:
        pane.send_keys(*names)
        wait(
            browser,
            f"!!{active} && {active}.id === document.getElementById('source').getAttribute('aria-activedescendant')",
        )
        row = browser.find_element(By.CSS_SELECTOR, "#source .row.active")
        place = tuple(str(row.get_attribute(f"aria-{name}")) for name in ("level", "posinset", "setsize"))
        assert row.get_attribute("aria-selected") == "true" and row.get_attribute("role") == "treeitem"
        return place[0], place[1], place[2]

    assert press(Keys.HOME) == ("1", "1", "1")
    assert press(Keys.ARROW_RIGHT) == ("2", "1", "2")
    assert press(Keys.ARROW_DOWN) == ("2", "2", "2")
    assert press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT) == ("3", "1", "2")
    assert press(Keys.ARROW_LEFT) == ("2", "2", "2")
    assert press(Keys.ARROW_LEFT, Keys.ARROW_LEFT) == ("1", "1", "1")
    assert press(Keys.ARROW_LEFT) == ("1", "1", "1")
    assert browser.find_element(By.CSS_SELECTOR, "#source .row").get_attribute("aria-expanded") == "false"


def test_a_phone_shows_whole_names_one_tree_above_the_other(browser: Any, tmp_path: Path) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, tmp_path, remapkit.report("vit_hf").html)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        boxes = [browser.find_element(By.ID, name).rect for name in ("source", "target")]
        assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
        assert all(box["width"] > 350 and box["height"] > 100 for box in boxes)
        assert not browser.find_element(By.ID, "edges").is_displayed()
        cut = "return [...document.querySelectorAll('.row .key')].filter(x => x.scrollWidth > x.clientWidth).length"
        assert browser.execute_script(cut) == 0
        # A click brings the partner into view, in the other pane.
        browser.execute_script("document.getElementById('source').scrollTop = 1e6")
        wait(browser, "Number(document.querySelector('#source .row')?.dataset.row) > 0")
        browser.execute_script("[...document.querySelectorAll('#source .row')].at(-1).click()")
        wait(browser, "!!document.querySelector('#target .row.mate')")
        view = browser.find_element(By.ID, "target").rect
        mate = browser.find_element(By.CSS_SELECTOR, "#target .row.mate").rect
        assert view["y"] <= mate["y"] < view["y"] + view["height"]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
