"""docs/features.md says what is not supported; the server says the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import MODEL

PAGE = Path(__file__).parents[3] / "docs" / "features.md"
_ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| `(?P<path>/[^`]+)` \| `(?P<sent>\{.+\})` \| (?P<status>\d+) \| (?P<answer>.+) \|$", re.M
)
ROWS = [match.groupdict() for match in _ROW.finditer(PAGE.read_text())]
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
}


def test_the_page_has_its_rows() -> None:
    assert len(ROWS) == PAGE.read_text().count("| 400 |") + PAGE.read_text().count("| 404 |")
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=[row["what"] for row in ROWS])
def test_what_is_not_supported_is_refused_as_the_page_says(client: httpx.Client, row: dict[str, str]) -> None:
    body = {"model": MODEL, **NEEDED.get(row["path"], {}), **json.loads(row["sent"])}
    answer = client.post(row["path"], json=body)
    assert answer.status_code == int(row["status"])
    error = answer.json()["error"]
    assert row["answer"] in error["message"]
    if answer.status_code == 400 and len(json.loads(row["sent"])) == 1:
        assert error["param"].startswith(next(iter(json.loads(row["sent"]))))


@pytest.mark.parametrize("path", NEEDED)
def test_without_the_field_the_same_request_is_answered(client: httpx.Client, path: str) -> None:
    assert client.post(path, json={"model": MODEL, "max_tokens": 1, **NEEDED[path]}).status_code == 200
