"""Records as one HTML file that asks for nothing else.

A policy in its head lets the one script run that is its own, and no request leave: a name that
slipped through the escaping would still be harmless.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from fskd_onnx.printable import printable
from fskd_onnx.reporting.page_content import page_of
from fskd_onnx.reporting.pictures import draw
from fskd_onnx.reporting.record import Record

_FOLDER = "templates"


def to_html(record: Record) -> str:
    """Return a record as the text of an HTML file.

    Args:
        record: see `fskd_onnx.reporting.record`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fskd_onnx.reporting", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = resources.files("fskd_onnx.reporting") / _FOLDER
    style, script = ((files / name).read_text("utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page_of(record)
    return environment.get_template("report.html.j2").render(
        page=page,
        reasons=[group for group in page.reasons if group.names],
        command=record.get("command", ""),
        wide=draw(page.panels, narrow=False),
        narrow=draw(page.panels, narrow=True),
        style=style,
        script=script,
        script_hash=f"sha256-{digest}",
    )


def _shown(value: Any) -> Any:
    """Return what a template puts in; text of files and models as it may be shown."""
    return printable(value) if type(value) is str else value
