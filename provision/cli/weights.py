"""`deployctl weights push` and `deployctl weights bundle`."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provision.weights_push import Pushed, PushProgress, Report
    from runtime.bucket import Bucket
    from runtime.vm import Provider

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Put a model, or the packages of a machine without internet, into a bucket of yours.",
)
LINE_EVERY_S = 10.0

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="org/name[@rev], modelscope:org/name, or a folder.")
]
UrlArgument = Annotated[str, typer.Argument(metavar="BUCKET_URL", help="s3://bucket/prefix or oss://bucket/prefix.")]
RegionOption = Annotated[
    str | None,
    typer.Option("--region", help="The bucket's region. Default: AWS_REGION or OSS_REGION, else the cloud's default."),
]
EndpointOption = Annotated[str | None, typer.Option("--hub-endpoint", help="Base URL of a mirror of the hub.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Where two files lie at a time. Default: deployctl's cache folder.")
]


@app.command()
def push(
    model: ModelArgument,
    url: UrlArgument,
    region: RegionOption = None,
    hub_endpoint: EndpointOption = None,
    cache: CacheOption = None,
    json: JsonFlag = False,
) -> None:
    """Copy a model from a hub (or a folder) into a bucket, once; machines then load it from there.

    A token for gated models is read from HF_TOKEN or MODELSCOPE_API_TOKEN. The same command goes on where it was
    stopped, and sends nothing that is there.
    """
    from provision.model_ref import parse_model

    try:
        target = parse_model(url)
        origin = parse_model(model)
    except ValueError as error:
        raise UsageError("the arguments name no model and bucket", why=str(error)) from None
    if target.kind not in ("s3", "oss"):
        raise UsageError(f"{url} is not a bucket", why="write s3://bucket/prefix or oss://bucket/prefix")
    done = push_model(str(origin), str(target), region=region, hub_endpoint=hub_endpoint, cache=cache)
    if json:
        emit_json(
            {
                "model": str(target),
                "source": done.source,
                "commit": done.commit,
                "files": done.files,
                "skipped": done.skipped,
                "sent_bytes": done.sent,
            }
        )
        return
    say(f"{done.files} files are in {target}: {done.files - done.skipped} sent, {done.skipped} were there")
    emit(str(target))
    say(f"next: deployctl up --model {target}")


@app.command()
def bundle(
    url: UrlArgument,
    python: Annotated[str, typer.Option("--python", help="Version of Python on the machine.")] = "3.12",
    extra_index: Annotated[
        str | None, typer.Option("--extra-index-url", help="For another build of torch, as pip's option.")
    ] = None,
    runtime_wheel: Annotated[str | None, typer.Option("--runtime-wheel", help="The wheel of deployctl itself.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A model to push too, to bundle/weights/.")] = None,
    region: RegionOption = None,
    hub_endpoint: EndpointOption = None,
    cache: CacheOption = None,
    json: JsonFlag = False,
) -> None:
    """Fill bundle/wheels/ of a mailbox with every package that its machine installs (egress: bundle).

    The mailbox is the bucket that `deployctl status` names; a machine that waits for its wheels goes on by itself.
    """
    from provision import bundle as wheelhouse
    from provision.model_ref import ModelRef, parse_model
    from provision.wheel import runtime_wheel as make_wheel

    try:
        target = parse_model(url)
        chosen = parse_model(model) if model else None
    except ValueError as error:
        raise UsageError("the arguments name no bucket or model", why=str(error)) from None
    if target.kind not in ("s3", "oss"):
        raise UsageError(f"{url} is not a bucket", why="write s3://bucket or oss://bucket")
    wheelhouse.check_host()
    if python != ".".join(map(str, sys.version_info[:2])):
        say(f"note: pip runs on Python {sys.version_info[0]}.{sys.version_info[1]}, and decides by it which packages")
        say(f"      only other versions need; `deployctl weights bundle` under Python {python} is exact")
    provider = _provider(target.kind)
    wheel = make_wheel(runtime_wheel)
    folder = _work(cache, f"wheels-{provider}-{python}-{extra_index}-{wheel.sha256}")
    wheelhouse.download((wheelhouse.requirement(wheel, provider),), folder, python, extra_index)
    bucket, prefix = _open(str(target), region)
    with _store_errors(url):
        done = wheelhouse.push(folder, bucket, prefix, lambda name: say(f"  {name}"))
    weights = None
    if chosen is not None:
        place = "/".join(part for part in (target.location, "bundle/weights", chosen.short_name) if part)
        weights = str(ModelRef(target.kind, place))
        push_model(str(chosen), weights, region=region, hub_endpoint=hub_endpoint, cache=cache)
    if json:
        emit_json({"wheels": done.wheels, "skipped": done.skipped, "sent_bytes": done.sent, "model": weights})
        return
    say(f"{done.wheels} wheels are in {target}/{wheelhouse.PREFIX}: {done.skipped} were there")
    if weights is not None:
        emit(weights)


def push_model(
    model: str, url: str, *, region: str | None = None, hub_endpoint: str | None = None, cache: Path | None = None
) -> Pushed:
    """Copies `model` to `url`, both in a spec's form, with progress on stderr. Raises DeployctlError."""
    from provision.model_ref import parse_model
    from provision.origins import open_origin
    from provision.weights_push import Push

    ref = parse_model(model)
    work = _work(cache, f"{model}\n{hub_endpoint}\n{url}")
    token = os.environ.get("MODELSCOPE_API_TOKEN" if ref.kind == "modelscope" else "HF_TOKEN")
    bucket, prefix = _open(url, region)
    origin = open_origin(ref, endpoint=hub_endpoint, token=token, work=work)
    size = sum(file.size for file in origin.files)
    at = f" at {origin.commit[:12]}" if origin.commit else ""
    say(f"{origin.source}{at}: {len(origin.files)} files, {size / 2**30:.2f} GiB")
    with _store_errors(f"{model} {url}"), _display() as report:
        return Push(origin, bucket, prefix, work / "files", report).run()


def _open(url: str, region: str | None) -> tuple[Bucket, str]:
    """(bucket, prefix without slashes at its ends)."""
    from provision.model_ref import parse_model
    from runtime.bucket import open_bucket, region_of

    ref = parse_model(url)
    name, _, prefix = ref.location.partition("/")
    provider = _provider(ref.kind)
    with _store_errors(url):
        return open_bucket(provider, region or region_of(provider, os.environ), name), prefix.strip("/")


def _provider(kind: str) -> Provider:
    return "aws" if kind == "s3" else "alicloud"


def _work(cache: Path | None, what: str) -> Path:
    from provision.state import cache_root

    folder = (cache or cache_root() / "push") / hashlib.sha256(what.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _store_errors(words: str) -> Iterator[None]:
    from provision.weights_push import bucket_problem
    from runtime.bucket import BucketError

    try:
        yield
    except BucketError as error:
        raise bucket_problem(error, f"deployctl weights push {words} --region …") from error


@contextmanager
def _display() -> Iterator[Report]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        yield lambda seen: progress.update(task, description=seen.file, completed=seen.sent, total=seen.total)


class _Lines:
    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, seen: PushProgress) -> None:
        now = time.monotonic()
        if now >= self._next or seen.sent == seen.total:
            self._next = now + LINE_EVERY_S
            say(f"  {seen.file}: {100 * seen.sent / max(1, seen.total):.0f} % of {seen.total / 2**30:.2f} GiB")
