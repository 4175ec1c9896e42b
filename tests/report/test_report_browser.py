"""The page in a real browser: nothing is blocked, nothing is fetched, the script and the downloads work."""

import base64
import json
import os
import shutil
import subprocess
import time
from types import SimpleNamespace

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


class Browser:
    """Chromium through its debugging pipe: JSON messages that end with NUL, on file descriptors 3 and 4."""

    def __init__(self, profile):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self.number, self.events, self.session = 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        content = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "chromium went away"
            content += byte
        return json.loads(content)

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def size(self, width):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def close(self):
        self.writer.close()
        self.reader.close()
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def opened(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    browser = Browser(folder / "profile")
    browser.open(file)
    yield SimpleNamespace(browser=browser, folder=folder, file=file)
    browser.close()


def test_nothing_is_blocked_and_nothing_is_fetched(opened):
    browser = opened.browser
    browser.open(opened.file)
    assert browser.value("document.documentElement.classList.contains('with-script')") is True
    assert not [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert urls[0] == opened.file.as_uri()
    assert all(url.startswith("data:image/") for url in urls[1:])


def test_the_policy_blocks_a_script_that_is_not_ours(opened, page):
    browser, file = opened.browser, opened.folder / "spoiled.html"
    file.write_text(page.replace("</body>", "<script>document.title = 'owned'</script></body>"), encoding="utf-8")
    browser.open(file)
    assert browser.value("document.title") != "owned"
    assert [e for e in browser.events if e.get("method") == "Log.entryAdded"]


def test_all_images_load(opened):
    opened.browser.open(opened.file)
    broken = "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert opened.browser.value(broken) == 0
    assert opened.browser.value("document.images.length") > 40


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_sticks_out_sideways(opened, width):
    browser = opened.browser
    browser.open(opened.file)
    browser.size(width)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelector('figure img').getBoundingClientRect().width") > 350


def test_a_click_enlarges_and_sorts(opened):
    browser = opened.browser
    browser.open(opened.file)
    browser.value("document.querySelector('figure img').click()")
    assert browser.value("document.getElementById('zoom').open") is True
    browser.value("document.getElementById('zoom').click()")
    assert browser.value("document.getElementById('zoom').open") is False
    cells = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => parseFloat(r.cells[0].textContent))"
    before = browser.value(cells)
    for _ in range(2):
        browser.value("document.querySelector('table.sortable button').click()")
    assert browser.value(cells) == sorted(before, reverse=True)


def test_the_csv_can_be_downloaded_under_the_policy(opened):
    browser, folder = opened.browser, opened.folder / "downloads"
    folder.mkdir()
    browser.open(opened.file)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    link = "document.querySelector('a[download]')"
    name, address = browser.value(f"{link}.download"), browser.value(f"{link}.href")
    browser.call("Runtime.evaluate", expression=f"{link}.click()", userGesture=True)
    deadline = time.monotonic() + 20
    while not (folder / name).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (folder / name).read_bytes() == base64.b64decode(address.partition("base64,")[2])


def test_the_page_prints(opened):
    opened.browser.open(opened.file)
    content = base64.b64decode(opened.browser.call("Page.printToPDF")["data"])
    assert content.startswith(b"%PDF")
