"""`deployctl bench`."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, console, emit, emit_json, say
from provision.errors import StoppedError, UsageError

if TYPE_CHECKING:
    from provision.bench.answer import Server
    from provision.bench.load import Load
    from provision.bench.prompts import Question
    from provision.bench.result import Objective, Result
    from provision.bench.session import Wanted

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    name: NameArgument = None,
    name_option: NameOption = None,
    concurrency: Annotated[
        str, typer.Option(help="Closed loads: how many clients ask again as soon as they have an answer; '' for none.")
    ] = "1,10",
    qps: Annotated[
        str, typer.Option(help="Open loads: requests per second at random (Poisson) moments; '' for none.")
    ] = "10,20,50",
    seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="How long each load asks.")] = 20.0,
    input_tokens: Annotated[int, typer.Option(min=1, help="Length of random prompts, about.")] = 128,
    output_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of each answer; 64, or what the file's answers had.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Questions from a JSON file in ShareGPT's form.", show_default=False)
    ] = None,
    slo_ttft: Annotated[
        float | None, typer.Option(min=0.0, help="An answer is good with its first token in so many seconds.")
    ] = None,
    slo_tpot: Annotated[
        float | None, typer.Option(min=0.0, help="An answer is good with so many seconds per token after the first.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="URL", help="A second endpoint (ends in /v1), measured in turn.")
    ] = None,
    compare_model: Annotated[str | None, typer.Option(help="Its model's name; the same as here if left out.")] = None,
    compare_key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable that holds its API key.")
    ] = "COMPARE_API_KEY",
    compare_price: Annotated[
        float | None, typer.Option(min=0.0, help="What its machine costs, in US dollars per hour.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for results.json, table.md and chart.png.", show_default=False)
    ] = None,
    chart: Annotated[bool, typer.Option("--chart/--no-chart", help="Whether --out gets a chart.")] = True,
    seed: Annotated[int, typer.Option(help="Fixes prompts and moments.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Measure the endpoint under load: tokens/s, time to first token, latency, errors, price per token.

    Asks the endpoint with its own API key and pinned certificate, as a client would. Ctrl-C keeps what was measured.
    """
    from provision.bench.session import Wanted, measure

    loads = read_loads(concurrency, qps, seconds)
    objective = read_objective(slo_ttft, slo_tpot)
    if out is not None and chart:
        from provision.bench.chart import require_charts

        require_charts()
    wanted = Wanted(
        servers=find_servers(name, name_option, compare, compare_model, compare_key_env, compare_price),
        loads=loads,
        prompt_tokens=input_tokens,
        output_tokens=output_tokens or _default_output_tokens(),
        questions=_read_questions(dataset, output_tokens),
        objective=objective,
        seed=seed,
    )
    results: list[Result] = []
    started = time.time()
    stopped = False
    try:
        with BenchDisplay(len(loads) * len(wanted.servers), seconds) as display:

            def done(result: Result) -> None:
                results.append(result)
                display.finish(result)

            measure(wanted, progress=display.show, done=done)
    except KeyboardInterrupt:
        stopped = True
    if results:
        publish(results, wanted, started, out=out, chart=chart, json=json)
    if stopped:
        raise StoppedError("stopped by Ctrl-C", why=f"{len(results)} measurements were finished and are kept")


def read_loads(concurrency: str, qps: str, seconds: float) -> tuple[Load, ...]:
    """Closed loads, then open ones. Raises UsageError."""
    from provision.bench.load import Load

    clients = [Load("closed", value, seconds) for value in _numbers("--concurrency", concurrency)]
    for load in clients:
        if load.value != int(load.value):
            raise UsageError(f"--concurrency {load.value:g} is not a whole number")
    loads = (*clients, *(Load("open", value, seconds) for value in _numbers("--qps", qps)))
    if not loads:
        raise UsageError("there is no load to measure", next_command="deployctl bench --concurrency 1,10")
    return loads


def read_objective(ttft_s: float | None, tpot_s: float | None) -> Objective | None:
    from provision.bench.result import Objective

    return None if ttft_s is None and tpot_s is None else Objective(ttft_s, tpot_s)


def find_servers(
    name: str | None,
    name_option: str | None,
    url: str | None,
    model: str | None,
    key_variable: str,
    price_per_hour: float | None,
) -> tuple[Server, ...]:
    """The deployment and, where asked for, the endpoint beside it. Raises NotRunningError, UsageError."""
    from provision.bench.answer import Server

    target = find_target(name, name_option)
    access = target.access()
    own = Server(
        target.name,
        access.base_url,
        access.api_key,
        access.model,
        access.certificate,
        target.observe().price_per_hour,
    )
    if url is None:
        return (own,)
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--compare {url} is not a URL", next_command="deployctl bench --compare http://HOST:PORT/v1")
    key = os.environ.get(key_variable, "")
    return (own, Server(url, url, key, model or access.model, None, price_per_hour))


def publish(
    results: list[Result], wanted: Wanted, started: float, *, out: Path | None, chart: bool, json: bool
) -> None:
    """To stdout, and into the folder `out`."""
    from provision.bench import report

    text = "\n".join([report.table(results, wanted.objective), "", *report.notes(results, wanted.objective)])
    compared = report.ratios(results)
    text += "".join(f"\n{line}" for line in compared)
    document = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": wanted.loads[0].seconds,
        "prompt_tokens": wanted.prompt_tokens,
        "output_tokens": wanted.output_tokens,
        "questions_from_file": len(wanted.questions),
        "seed": wanted.seed,
        "endpoints": [{"name": item.name, "url": item.base_url, "model": item.model} for item in wanted.servers],
        "results": [dataclasses.asdict(result) for result in results],
    }
    if json:
        emit_json(document)
    else:
        emit(text)
    if out is None:
        return
    import json as json_module

    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json_module.dumps(document, indent=2) + "\n")
    (out / "table.md").write_text(text + "\n")
    if chart:
        from provision.bench.chart import draw

        draw(results, f"{wanted.servers[0].name}: {wanted.servers[0].model}", out / "chart.png")
    say(f"written to {out}")


class BenchDisplay:
    """A bar over all measurements on a terminal; a line per finished one elsewhere."""

    def __init__(self, measurements: int, seconds: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._seconds = seconds
        self._finished = 0
        self._console = console()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("asking", total=measurements * seconds)

    def __enter__(self) -> BenchDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, server: Server, load: Load, answers: int, elapsed_s: float) -> None:
        at = self._finished * self._seconds + min(elapsed_s, self._seconds)
        self._bar.update(self._task, description=f"{server.name} {load.label}: {answers} answers", completed=at)

    def finish(self, result: Result) -> None:
        self._finished += 1
        self._bar.update(self._task, completed=self._finished * self._seconds)
        if not self._console.is_terminal:
            say(f"{result.server} {result.load}: {result.output_tokens_per_s:.1f} tok/s, {result.errors} errors")


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1.0]
    if any(not 0 < number <= 10_000 for number in numbers):
        raise UsageError(
            f"{option} {text} is not a list of numbers up to 10000", next_command=f"deployctl bench {option} 1,10"
        )
    return numbers


def _default_output_tokens() -> int:
    from provision.bench.prompts import DEFAULT_OUTPUT_TOKENS

    return DEFAULT_OUTPUT_TOKENS


def _read_questions(dataset: Path | None, output_tokens: int | None) -> tuple[Question, ...]:
    if dataset is None:
        return ()
    from provision.bench.prompts import read_sharegpt

    return read_sharegpt(dataset, output_tokens)
