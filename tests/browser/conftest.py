"""A real Chromium, which the system must have: `apt-get install chromium`, or UNER_CHROMIUM says where one is."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("UNER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "Chromium was not found: apt-get install chromium, or set UNER_CHROMIUM to its path"
    with sync_playwright() as playwright:
        # root, in a container, has no sandbox; the pages are our own.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    """An empty page of its own; a test that leaves a script error, a dialog or a complaint in the console fails."""
    page, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    yield page
    page.close()
    assert complaints == []
