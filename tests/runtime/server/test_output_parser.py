"""Thoughts, text and calls come apart the same way however the output is cut into pieces."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.output_parser import CallDelta, OutputParser, Parsed, ToolFormat


@dataclass
class Result:
    """Everything that a parser said about one output."""

    text: str
    reasoning: str
    calls: list[tuple[str, str]]


def run(pieces: list[str], parser: OutputParser) -> Result:
    said: list[Parsed] = [*(parser.feed(piece) for piece in pieces), parser.flush()]
    deltas: list[CallDelta] = [delta for parsed in said for delta in parsed.calls or []]
    names = {delta.index: delta.name for delta in deltas if delta.name is not None}
    calls = [
        (name, "".join(delta.arguments for delta in deltas if delta.index == index))
        for index, name in sorted(names.items())
    ]
    ids = [delta.id for delta in deltas if delta.id is not None]
    assert len(set(ids)) == len(ids) == len(calls)
    return Result("".join(p.text for p in said), "".join(p.reasoning for p in said), calls)


def both_ways(output: str, *, thinks: bool = False, in_thought: bool = False, tools: ToolFormat | None = None,
              one_call: bool = False) -> Result:  # fmt: skip
    """The result for the whole at once, which must be that for single characters."""

    def parser() -> OutputParser:
        return OutputParser(thinks=thinks, in_thought=in_thought, tools=tools, one_call=one_call)

    whole = run([output], parser())
    assert run(list(output), parser()) == whole
    return whole


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": [1, {"b": "}<"}], "c": "\\""}}\n</tool_call>'
ARGUMENTS = '{"a": [1, {"b": "}<"}], "c": "\\""}'


def test_plain_text_passes_untouched() -> None:
    text = " a < b <think> c </think> <tool_call>\n"
    assert both_ways(text) == Result(text, "", [])


def test_thoughts_that_the_model_opens_are_told_from_the_answer() -> None:
    found = both_ways("<think>\nfirst <b> this\n</think>\n\nThe answer.", thinks=True)
    assert found == Result("The answer.", "first <b> this", [])


def test_thoughts_that_the_prompt_has_opened_are_told_from_the_answer() -> None:
    found = both_ways("first this\n</think>\n\nThe answer.", thinks=True, in_thought=True)
    assert found == Result("The answer.", "first this", [])


def test_thoughts_that_never_end_are_no_answer() -> None:
    assert both_ways("on and on </thi", thinks=True, in_thought=True) == Result("", "on and on </thi", [])


def test_a_model_that_can_think_may_answer_at_once() -> None:
    assert both_ways("<thin air", thinks=True) == Result("<thin air", "", [])


def test_a_call_has_its_name_and_its_arguments_as_written() -> None:
    assert both_ways(CALL, tools="hermes") == Result("", "", [("add", ARGUMENTS)])


def test_text_around_calls_stays_text() -> None:
    found = both_ways(f"Let me see.\n{CALL}\n{CALL} done", tools="hermes")
    assert found == Result("Let me see.done", "", [("add", ARGUMENTS)] * 2)


def test_thoughts_come_before_calls() -> None:
    found = both_ways(f"<think>hm</think>\n\n{CALL}", thinks=True, tools="hermes")
    assert found == Result("", "hm", [("add", ARGUMENTS)])


def test_only_the_first_call_counts_where_one_was_allowed() -> None:
    assert both_ways(f"{CALL}\n{CALL}", tools="hermes", one_call=True).calls == [("add", ARGUMENTS)]


def test_members_of_a_call_may_come_in_another_order() -> None:
    found = both_ways('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', tools="hermes")
    assert found == Result("", "", [("f", '{"a": 1}')])


@pytest.mark.parametrize(
    "output", ["<tool_call>not json</tool_call>", "<tool_call>\n{}\n</tool_call>", '<tool_call>{"nam', "<tool_call>[1]"]
)
def test_what_looks_like_a_call_and_is_none_comes_out_as_text(output: str) -> None:
    assert both_ways(output, tools="hermes") == Result(output, "", [])


def test_without_tools_a_call_is_text() -> None:
    assert both_ways(CALL) == Result(CALL, "", [])


def test_llama_writes_a_call_as_the_whole_answer() -> None:
    found = both_ways('{"name": "add", "parameters": {"a": 1}}', tools="llama3")
    assert found == Result("", "", [("add", '{"a": 1}')])


def test_llama_writes_several_calls_one_after_the_other() -> None:
    calls = '{"name": "a", "parameters": {"x": "};{"}}; {"name": "b", "parameters": {}}'
    assert both_ways(calls, tools="llama3") == Result("", "", [("a", '{"x": "};{"}'), ("b", "{}")])


def test_text_after_a_call_of_llama_is_not_lost() -> None:
    found = both_ways('{"name": "a", "parameters": {}}\nDone; {}', tools="llama3")
    assert found == Result("Done; {}", "", [("a", "{}")])


def test_only_the_first_call_of_llama_counts_where_one_was_allowed() -> None:
    calls = '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}'
    assert both_ways(calls, tools="llama3", one_call=True).calls == [("a", "{}")]


@pytest.mark.parametrize("output", ['{"a": 1}', "{not json", "Hello {you}"])
def test_an_answer_in_braces_that_is_no_call_is_text(output: str) -> None:
    assert both_ways(output, tools="llama3") == Result(output, "", [])


def test_arguments_stream_before_the_call_is_complete() -> None:
    parser = OutputParser(thinks=False, tools="hermes")
    first = parser.feed('<tool_call>\n{"name": "f", "arguments": {"city": "Par')
    assert first.calls is not None
    assert [delta.name for delta in first.calls] == ["f", None]
    assert first.calls[1].arguments == '{"city": "Par'


ARGUMENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab{}[]"\\<>/ é🎉'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text("xyz", min_size=1, max_size=3), ARGUMENT, max_size=3),
    thought=st.text(st.sampled_from("ab<>/ think\n"), max_size=12),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_any_cut_gives_the_same_calls_and_thoughts(arguments: dict[str, object], thought: str, cuts: list[int]) -> None:
    written = json.dumps(arguments)
    output = f'<think>{thought}</think>so<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'
    if "</tool_call>" in written:
        return
    at = sorted({0, len(output), *(cut for cut in cuts if cut < len(output))})
    pieces = [output[begin:end] for begin, end in itertools.pairwise(at)]
    whole = run([output], OutputParser(thinks=True, tools="hermes"))
    assert run(pieces, OutputParser(thinks=True, tools="hermes")) == whole
    assert whole.calls == [("f", written)]
