"""Pages in headless Chromium: what a script finds, what is on the console, what is asked for.

The pages are served from this process, inside frames of a page that asks the questions: so the
browser is started once for all of them, and each request is seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MISSING = "no Chromium to look at reports; 'apt-get install chromium', or name one by CHROMIUM=..."

_HOST = """<!doctype html><link rel="icon" href="data:,"><body><script>
const ask = async (page, width) => {
  const frame = document.createElement("iframe");
  frame.width = width;
  frame.height = 900;
  frame.src = page;
  const loaded = new Promise((done) => { frame.onload = done; });
  document.body.append(frame);
  await loaded;
  const found = await (QUESTION)(frame.contentWindow, frame.contentDocument);
  found.requests = frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name);
  frame.remove();
  return found;
};
(async () => {
  const answers = [];
  for (const [page, width] of PAGES) {
    answers.push(await ask(page, width).catch((error) => ({ error: String(error) })));
  }
  document.body.textContent = JSON.stringify(answers);
})();
</script></body>"""


@dataclass(frozen=True)
class Answers:
    """What a browser says of pages.

    Attributes:
        found: by page and width, what the question gave, and the further ``requests`` of the page.
        console: what was on the console.
        requested: paths that were asked for.
    """

    found: Mapping[tuple[str, int], dict[str, Any]]
    console: Sequence[str]
    requested: Sequence[str]


class _Pages(BaseHTTPRequestHandler):
    """Gives out pages by their paths."""

    def __init__(self, pages: Mapping[str, str], requested: list[str], *rest: Any) -> None:
        self._pages, self._requested = pages, requested
        super().__init__(*rest)

    def do_GET(self) -> None:
        self._requested.append(self.path)
        known = self.path in self._pages
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self._pages.get(self.path, "").encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, its own name
        """Say nothing."""


def ask(pages: Mapping[str, str], widths: Sequence[int], question: str, folder: Path) -> Answers:
    """Ask the same of each page at each width.

    Args:
        pages: text of each page by its name.
        widths: of the frame that it stands in.
        question: a function of a window and a document, in JavaScript, that returns an object.
        folder: where the browser keeps what it likes to keep.
    """
    places = [(name, width) for name in pages for width in widths]
    served = {f"/{name}": text for name, text in pages.items()}
    served["/"] = _HOST.replace("QUESTION", question).replace("PAGES", json.dumps(places))
    requested: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, served, requested)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            done = subprocess.run(
                [
                    str(CHROMIUM),
                    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                    *("--disable-background-networking", "--disable-dev-shm-usage"),
                    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=60000"),
                    *(f"--user-data-dir={folder}", "--window-size=1300,1000", "--dump-dom"),
                    f"http://127.0.0.1:{server.server_port}/",
                ],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=120,
                check=True,
            )
        finally:
            server.shutdown()
    body = done.stdout[done.stdout.index("<body>") + len("<body>") : done.stdout.index("</body>")]
    found = dict(zip(places, json.loads(unescape(body)), strict=True))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Answers(found, console, requested)
