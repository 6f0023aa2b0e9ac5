"""Run as a program where NeMo's packages are: asks with one of its clients, for each line of JSON on standard input.

A line holds `client` (a module), `url`, `family`, and `query` (arguments of `NemoQueryMultimodal.query`). For each one
line of JSON is written: `answer`, as nested lists, or `error`.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

MODEL = "tiny"


def ask(line: dict[str, Any]) -> dict[str, Any]:
    client = importlib.import_module(line["client"]).NemoQueryMultimodal(line["url"], MODEL, line["family"])
    try:
        return {"answer": client.query(**line["query"]).tolist()}
    except Exception as error:  # noqa: BLE001 -- whatever the client makes of an error is what is looked at
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line))))  # noqa: T201
