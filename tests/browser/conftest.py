"""One JupyterLab, one browser and one page for all these tests; what goes wrong in the background fails them."""

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
LARGEST = 60_000  # bytes of a picture for the README


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=Path, metavar="DIR", help="put the pictures of the README into this folder")


# Of this folder's scope: in a run of all tests the browser's event loop and the servers must not outlive these.


@pytest.fixture(scope="package")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the servers' files and for pictures of what failed."""
    request.config.stash[FOLDER] = tmp_path_factory.mktemp("browser")
    return request.config.stash[FOLDER]


@pytest.fixture(scope="package")
def context(request: pytest.FixtureRequest, folder: Path) -> Iterator[BrowserContext]:
    """A window of the system's Chromium, offline."""
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
    """Listens from the first page on."""
    return Watch(context)


@pytest.fixture(autouse=True)
def watch(everything: Watch) -> Iterator[Watch]:
    """Each test ends with the question of what went wrong in the background."""
    yield everything
    everything.check()


@pytest.fixture(scope="package")
def lab(context: BrowserContext, everything: Watch, folder: Path) -> Iterator[Page]:
    """JupyterLab, open."""
    (folder / "lab").mkdir()
    with servers.jupyterlab(folder / "lab") as address:
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("window.jupyterapp")
        yield page
        page.close()


@pytest.fixture(scope="package")
def page_of_its_own(context: BrowserContext, everything: Watch, folder: Path) -> Iterator[Page]:
    """The playground through Voilà, open."""
    (folder / "voila").mkdir()
    with servers.voila(folder / "voila", "notebooks/playground.ipynb") as address:
        page = context.new_page()
        page.goto(address, timeout=60_000)
        yield page
        page.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a sentence with a number, to be read at the end of the run."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for sentence in config.stash.get(MEASURED, []):
        terminalreporter.write_line(sentence)


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Locator, str], None]:
    """With --pictures, takes a picture of a part of a page, under a name; else does nothing."""
    folder = request.config.getoption("--pictures", None)

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
    """Of each page that is open when a test fails, a picture, and where it lies."""
    report = yield
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        context = item.config.stash.get(CONTEXT, None)
        for number, page in enumerate(context.pages if context else ()):
            path = item.config.stash[FOLDER] / f"{item.name}-{call.when}-{number}.png"
            page.screenshot(path=path)
            report.sections.append(("picture of the page", str(path)))
    return report
