"""What an endpoint under test is asked: random words of a given length, or a user's conversations."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from provision.errors import SpecError

CHARACTERS_PER_TOKEN = 4  # English text, the usual rule of thumb; only for answers in a file without token counts
DEFAULT_OUTPUT_TOKENS = 64
LONGEST_FROM_FILE = 2048  # output tokens asked for, whatever the file's answer was

# Frequent English words of one token in most vocabularies, so that a prompt's length in tokens is near its word count.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education"
)
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Question:
    """One request's text, and how many tokens its answer shall have at most."""

    text: str
    max_tokens: int


class Questions(Protocol):
    """Where questions come from. The same `number` gives the same question, and no two begin alike."""

    def question(self, number: int) -> Question: ...


@dataclass(frozen=True, slots=True)
class RandomQuestions:
    """`words` random words each. Different beginnings keep the prefix cache out of the measurement."""

    words: int
    output_tokens: int
    seed: int = 0

    def question(self, number: int) -> Question:
        rng = random.Random(f"{self.seed}/{number}")
        return Question(" ".join(rng.choices(WORDS, k=self.words)), self.output_tokens)


@dataclass(frozen=True, slots=True)
class FileQuestions:
    """Questions of a file in a random order that `seed` fixes; from the start again when all were asked."""

    questions: tuple[Question, ...]
    seed: int = 0

    def question(self, number: int) -> Question:
        around, index = divmod(number, len(self.questions))
        order = list(range(len(self.questions)))
        random.Random(f"{self.seed}/{around}").shuffle(order)
        return self.questions[order[index]]


def read_sharegpt(path: Path, output_tokens: int | None) -> tuple[Question, ...]:
    """First question of each conversation of a file in ShareGPT's form.

    The form: `[{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}]`.
    `output_tokens` replaces the length of the file's own answers. Conversations that do not begin with a human are left
    out. Raises SpecError when the file is something else, or nothing is left.
    """
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read", why=error.strerror) from error
    except ValueError as error:
        raise SpecError(f"{path} is not JSON", why=str(error)) from error
    if not isinstance(entries, list):
        raise _wrong(path, "the top", "a list of conversations")
    found = [_question(path, number, entry, output_tokens) for number, entry in enumerate(entries)]
    questions = tuple(question for question in found if question is not None)
    if not questions:
        raise SpecError(f"{path} holds no question", why="no conversation begins with a turn from “human” or “user”")
    return questions


def _question(path: Path, number: int, entry: Any, output_tokens: int | None) -> Question | None:
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list):
        raise _wrong(path, f"[{number}]", 'an object with a list "conversations"')
    for place, turn in enumerate(turns[:2]):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
            raise _wrong(path, f"[{number}].conversations[{place}]", 'an object with the texts "from" and "value"')
    if not turns or turns[0]["from"] not in ("human", "user") or not turns[0]["value"].strip():
        return None
    if output_tokens is not None:
        return Question(turns[0]["value"], output_tokens)
    if len(turns) == 1:
        return Question(turns[0]["value"], DEFAULT_OUTPUT_TOKENS)
    length = max(1, len(turns[1]["value"]) // CHARACTERS_PER_TOKEN)
    return Question(turns[0]["value"], min(length, LONGEST_FROM_FILE))


def _wrong(path: Path, place: str, expected: str) -> SpecError:
    return SpecError(
        f"{path} is not in ShareGPT's form", why=f"{place} is not {expected}", next_command="deployctl bench --help"
    )
