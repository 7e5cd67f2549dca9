"""Make the example of a report, docs/report-example.html; with --picture also docs/report-example.webp.

python docs/make_example_report.py              # a test compares the committed page with what this makes
python docs/make_example_report.py --picture    # needs chromium and its driver; a person looks at the picture
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from pathlib import Path

import remapkit

PACK = "mixtral_fused"
PAGE = Path(__file__).with_name("report-example.html")
PICTURE = PAGE.with_suffix(".webp")
SIZE = {"width": 1280, "height": 760, "deviceScaleFactor": 1, "mobile": False}
SELECT = "[...document.querySelectorAll('#source .row')].find(row => row.textContent.includes('experts')).click()"


def make_example() -> str:
    """Return the text of the page."""
    return remapkit.report(PACK).html


def take_picture() -> bytes:
    """Return a picture of the page in light, with the stacked experts selected."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as profile:
        for each in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={profile}"):
            options.add_argument(f"--{each}")
        service = webdriver.ChromeService(shutil.which("chromedriver") or "")
        with webdriver.Chrome(options=options, service=service) as browser:
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
            browser.get(PAGE.as_uri())
            browser.execute_async_script(f"{SELECT}; requestAnimationFrame(() => setTimeout(arguments[0], 300))")
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 90})
            return base64.b64decode(taken["data"])


if __name__ == "__main__":
    PAGE.write_text(make_example(), encoding="utf-8")
    if "--picture" in sys.argv[1:]:
        PICTURE.write_bytes(take_picture())
