"""A headless Chromium for the tests of the report, and what they do in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpuclust import schema

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECONDS = 60


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; skips without one, unless GPUCLUST_REQUIRE_BROWSER=1."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = "no chromium" if browser is None else "no chromedriver"
        if os.environ.get("GPUCLUST_REQUIRE_BROWSER") == "1":
            pytest.fail(f"GPUCLUST_REQUIRE_BROWSER=1, but there is {missing} on the PATH")
        pytest.skip(f"{missing} on the PATH (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, "--window-size=1280,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def reported(request: pytest.FixtureRequest) -> Path:
    """Folder of the run whose report is opened."""
    elsewhere = os.environ.get("GPUCLUST_BROWSER_RUN")
    run: Path = Path(elsewhere).resolve() if elsewhere else request.getfixturevalue("small_run")
    return run


@pytest.fixture(scope="module")
def opened(chromium: Any, reported: Path) -> Any:
    chromium.get("about:blank")
    chromium.get_log("performance")  # what the browser's own first page asked for
    chromium.get((reported / schema.REPORT).as_uri())
    until(chromium, "document.documentElement.dataset.ready === 'true'")
    return chromium


@pytest.fixture
def page(opened: Any) -> Any:
    opened.execute_script(
        "history.replaceState(null, '', location.pathname); dispatchEvent(new PopStateEvent('popstate'))"
    )
    return opened


@pytest.fixture(scope="module")
def features(reported: Path) -> pd.DataFrame:
    return pd.read_parquet(reported / schema.FEATURES)


def until(page: Any, condition: str | Callable[[Any], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    check = (lambda p: p.execute_script(f"return {condition}")) if isinstance(condition, str) else condition
    return WebDriverWait(page, SECONDS, poll_frequency=0.1).until(check, str(condition))


def card(page: Any) -> str:
    return str(page.execute_script("return document.querySelector('#card').innerText"))


def send(page: Any, selector: str, text: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    field = page.find_element(By.CSS_SELECTOR, selector)
    field.clear()
    field.send_keys(text, Keys.ENTER)
