"""The built book, _build/html, and for all tests here one Chromium and one server of it."""

import contextlib
import gzip
import mimetypes
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
PICTURES = ROOT / "_build" / "pictures" if os.environ.get("PICTURES") else None
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
KOREAN = [f"ko/{name}" for name in PAGES if "/labs/" not in name]  # labs are the English ones again

# axe-core's newest comes in a package that needs Python 3.12; the other's has the same rules.
SOURCES = {"pytest_playwright_axe": "resources/axe.min.js", "axe_playwright_python": "axe.min.js"}
AXE = next((files(package) / path for package, path in SOURCES.items() if find_spec(package)), None)

try:
    from playwright.sync_api import Error, sync_playwright
except ImportError:
    Error, sync_playwright = Exception, None


def pytest_collection_modifyitems(items):
    missing = None
    if sync_playwright is None or AXE is None:
        missing = "needs playwright and axe: make test-browser"
    elif CHROMIUM is None:
        missing = "needs Chromium: apt-get install chromium, or CHROMIUM=<its path>"
    if missing:
        for item in items:
            if "reader" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=missing))


class Handler(BaseHTTPRequestHandler):
    """A file server that compresses, as GitHub Pages does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = (HTML / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if path.is_dir():
            path /= "index.html"
        if HTML not in path.parents or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = path.read_bytes()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        text = kind.startswith("text/") or kind.endswith(("javascript", "json", "xml"))
        if text:
            body = gzip.compress(body, 6, mtime=0)
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        if text:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def host():
    """The address of the book on this machine."""
    assert (HTML / f"{PAGES[0]}.html").exists(), "_build/html must hold the book: make book"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Visit:
    """An open page, and what it asked for and complained of."""

    def __init__(self, context, host, name):
        self.page, self.host, self.problems, self.bytes = context.new_page(), host, [], {}
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("request", self.ask)
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        self.page.on("response", self.answer)
        self.page.goto(f"{host}/{name}.html", wait_until="load")

    def hear(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def ask(self, request):
        if not request.url.startswith((self.host, "data:", "blob:")):
            self.problems.append(f"outside: {request.url}")

    def answer(self, response):
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")
        self.bytes[response.url] = int(response.headers.get("content-length", 0))


# Chromium without a screen may leave out a frame, and with it the call that waits for one.
NEXT_FRAME = "new Promise(done => { requestAnimationFrame(done); setTimeout(done, 1000); })"
NO_FRAME = "new Promise((_, fail) => setTimeout(() => fail(new Error('no frame')), 20_000))"


def scroll_through(page):
    """A reader's way down the page: some things are made ready when they come near the screen."""
    page.evaluate(f"""async () => {{
        for (let y = 0; y < document.scrollingElement.scrollHeight; y += innerHeight) {{
            scrollTo({{top: y, behavior: "instant"}});
            await {NEXT_FRAME};
        }}
        scrollTo({{top: 0, behavior: "instant"}});
        await Promise.race([document.fonts.ready, {NO_FRAME}]);
    }}""")


def end_browsers():
    """Ends the browsers that this process has started: calls that wait for them fail at once."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "chrom" in process.name():
                process.kill()


class Reader:
    """Opens pages in one shared browser; starts another one when that has crashed."""

    seconds = 180  # for one check: some calls, as evaluate and count, have no limit of their own

    def __init__(self, host):
        self.host, self.playwright, self.browser, self.contexts = host, sync_playwright().start(), None, {}

    def context(self, width, scripts=True):
        if self.browser is None or not self.browser.is_connected():
            self.browser = self.playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            self.contexts = {}
        if (width, scripts) not in self.contexts:
            context = self.browser.new_context(
                viewport={"width": width, "height": 900},
                has_touch=width < 500,
                java_script_enabled=scripts,
                permissions=["clipboard-read", "clipboard-write"],
            )
            context.set_default_timeout(60_000)
            self.contexts[width, scripts] = context
        return self.contexts[width, scripts]

    def read(self, name, check, width=1280, scripts=True):
        """check(visit) on a new page; its result. Up to three times if the browser crashes, or waits for a frame for ever."""
        for attempt in range(3):
            alarm = threading.Timer(self.seconds, end_browsers)
            alarm.start()
            try:
                visit = Visit(self.context(width, scripts), self.host, name)
                try:
                    return check(visit)
                finally:
                    with contextlib.suppress(Error):
                        visit.page.close()
            except Error as error:
                words = ("crash", "has been closed", "disconnected", "element to be stable", "no frame")
                crashed = any(word in str(error) for word in words)
                if not crashed or attempt == 2:
                    raise
                with contextlib.suppress(Error):
                    self.browser.close()
                self.browser = None
            finally:
                alarm.cancel()

    def close(self):
        with contextlib.suppress(Error):
            if self.browser:  # a test may have opened no page
                self.browser.close()
        self.playwright.stop()


@pytest.fixture(scope="session")
def reader(host):
    reader = Reader(host)
    yield reader
    reader.close()
