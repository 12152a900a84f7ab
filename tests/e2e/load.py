"""Clients that ask again and again, and what became of every request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import httpx

from provision.client import pinned_context

FINE = "fine"


@dataclass(slots=True)
class Outcomes:
    """`counts`: what became of how many requests; `waited_s`: the longest time to an answer's end."""

    counts: Counter[str] = field(default_factory=Counter)
    waited_s: float = 0.0

    @property
    def wrong(self) -> dict[str, int]:
        return {what: count for what, count in self.counts.items() if what != FINE}


class Load:
    """`clients` of one endpoint, half of them with streams, each on a connection that it keeps. A context manager.

    `place`: where each of them lives, another network namespace for example. Every request counts as `fine` when it was
    answered whole with at least one token.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        model: str,
        *,
        clients: int = 8,
        tokens: int = 16,
        certificate: str | None = None,
        place: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._body = {"model": model, "prompt": "the quick brown fox", "max_tokens": tokens, "temperature": 0}
        self._certificate = certificate
        self._place = place
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(clients)]
        self.outcomes = Outcomes()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def go_on_until(self, moment: float) -> None:
        """Returns at `moment` of time.monotonic()."""
        self._over.wait(max(0.0, moment - time.monotonic()))

    def _ask(self, number: int) -> None:
        with self._place():
            self._ask_on(number)

    def _ask_on(self, number: int) -> None:
        verify = True if self._certificate is None else pinned_context(self._certificate)
        ask = self._stream if number % 2 else self._whole
        with httpx.Client(headers=self._headers, verify=verify, trust_env=False, timeout=180) as client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    what = ask(client)
                except httpx.HTTPError as error:
                    what = f"{type(error).__name__}: {error}"
                with self._lock:
                    self.outcomes.counts[what] += 1
                    self.outcomes.waited_s = max(self.outcomes.waited_s, time.monotonic() - began)

    def _whole(self, client: httpx.Client) -> str:
        answer = client.post(f"{self._base_url}/completions", json=self._body)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        return FINE if answer.json()["usage"]["completion_tokens"] > 0 else "an empty answer"

    def _stream(self, client: httpx.Client) -> str:
        with client.stream("POST", f"{self._base_url}/completions", json={**self._body, "stream": True}) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {answer.read()[:200]!r}"
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        if not events or events[-1] != "[DONE]":
            return f"a stream without its end: {events[-1:]}"
        return FINE if any("choices" in json.loads(event) for event in events[:-1]) else "an empty stream"
