"""One JupyterLab, one browser and one page for all these tests; an error in the background fails a test."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright  # noqa: E402

from tests.browser import servers  # noqa: E402
from tests.browser.watching import Watch  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CONTEXT = pytest.StashKey[BrowserContext]()
FOLDER = pytest.StashKey[Path]()
MEASURED = pytest.StashKey[list[str]]()
LARGEST = 60_000  # bytes of a screenshot for the README


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", type=Path, metavar="DIR", help="save the screenshots of the README in this folder"
    )


# Scoped to this folder: in a run of all tests the browser's event loop and the servers must end with these tests.


@pytest.fixture(scope="package")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the servers' files and for screenshots of failed tests."""
    request.config.stash[FOLDER] = tmp_path_factory.mktemp("browser")
    return request.config.stash[FOLDER]


@pytest.fixture(scope="package")
def context(request: pytest.FixtureRequest, folder: Path) -> Iterator[BrowserContext]:
    """The system's Chromium, offline."""
    program = os.environ.get("CHARRNN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: expected one of {', '.join(NAMES)} on the PATH, or CHARRNN_CHROMIUM to name one")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=FLAGS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000}, service_workers="block")
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        request.config.stash[CONTEXT] = context
        yield context
        browser.close()


@pytest.fixture(scope="package")
def everything(context: BrowserContext) -> Watch:
    """A watch over all pages from the first one."""
    return Watch(context)


@pytest.fixture(autouse=True)
def watch(everything: Watch) -> Iterator[Watch]:
    """Check after each test for errors in the background."""
    yield everything
    everything.check()


@pytest.fixture(scope="package")
def lab(context: BrowserContext, everything: Watch, folder: Path) -> Iterator[Page]:
    """An open page with JupyterLab."""
    (folder / "lab").mkdir()
    with servers.jupyterlab(folder / "lab") as address:
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("window.jupyterapp")
        yield page
        page.close()


@pytest.fixture(scope="package")
def page_of_its_own(context: BrowserContext, everything: Watch, folder: Path) -> Iterator[Page]:
    """An open page with the playground in Voilà."""
    (folder / "voila").mkdir()
    with servers.voila(folder / "voila", "notebooks/playground.ipynb") as address:
        page = context.new_page()
        page.goto(address, timeout=60_000)
        yield page
        page.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that takes a measurement as a sentence and prints it at the end of the run."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for sentence in config.stash.get(MEASURED, []):
        terminalreporter.write_line(sentence)


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[[Locator, str], None]:
    """A function that saves a named screenshot of a part of a page if --screenshots is given."""
    folder = request.config.getoption("--screenshots", None)

    def take(part: Locator, name: str) -> None:
        if folder is not None:
            path = folder / f"{name}.png"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.open(io.BytesIO(part.screenshot())).convert("RGB")
            image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
            assert path.stat().st_size < LARGEST, f"{path}: expected less than {LARGEST} bytes"

    return take


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Save a screenshot of each open page when a test fails, and report its path."""
    report = yield
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        context = item.config.stash.get(CONTEXT, None)
        for number, page in enumerate(context.pages if context else ()):
            path = item.config.stash[FOLDER] / f"{item.name}-{call.when}-{number}.png"
            page.screenshot(path=path)
            report.sections.append(("screenshot of the page", str(path)))
    return report
