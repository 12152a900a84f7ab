"""Names of models."""

from __future__ import annotations

import pytest

from provision.model_ref import ModelRef, parse_model


@pytest.mark.parametrize(
    ("text", "ref", "written"),
    [
        ("demo", ModelRef("demo", "demo"), "demo"),
        ("Qwen/QwQ-32B", ModelRef("hf", "Qwen/QwQ-32B"), "hf:Qwen/QwQ-32B"),
        ("hf:a/b@v1.0", ModelRef("hf", "a/b", "v1.0"), "hf:a/b@v1.0"),
        ("modelscope:a/b", ModelRef("modelscope", "a/b"), "modelscope:a/b"),
        ("s3://bucket/some/prefix/", ModelRef("s3", "bucket/some/prefix"), "s3://bucket/some/prefix"),
        ("oss://bucket", ModelRef("oss", "bucket"), "oss://bucket"),
        ("./models/x", ModelRef("folder", "./models/x"), "./models/x"),
        ("~/x", ModelRef("folder", "~/x"), "~/x"),
    ],
)
def test_each_form_is_read_and_written_back(text: str, ref: ModelRef, written: str) -> None:
    assert parse_model(text) == ref
    assert str(ref) == written
    assert parse_model(written) == ref


@pytest.mark.parametrize("text", ["", "model", "a/b/c", "a/b@", "hf:", "http://x/y", "s3://B/x", "a b/c"])
def test_everything_else_is_refused_with_the_forms_that_are_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"org/name|bucket/prefix"):
        parse_model(text)


@pytest.mark.parametrize(
    ("text", "name"), [("a/b@x", "a/b"), ("./models/mine/", "mine"), ("s3://bucket/x/y", "y"), ("demo", "demo")]
)
def test_the_default_name_in_the_api(text: str, name: str) -> None:
    assert parse_model(text).short_name == name
