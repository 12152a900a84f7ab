"""After `make up`: the endpoint answers its key and nobody else; after `deployctl down`, nothing of it is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from openai import AuthenticationError, OpenAI

DEPLOYCTL = str(Path(sys.executable).with_name("deployctl"))


def main() -> None:
    access = json.loads(deployctl("endpoint", "--json"))
    client = OpenAI(base_url=access["base_url"], api_key=access["api_key"], max_retries=0)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=access["model"], messages=question, temperature=0, max_tokens=32)
    text = answer.choices[0].message.content or ""
    print(f"answer: {text!r}, {answer.usage}")
    require("Paris" in text, "the model does not answer the question")
    try:
        client.with_options(api_key="wrong").models.list()
    except AuthenticationError as error:
        print(f"with a wrong key: {error.status_code}")
    else:
        require(False, "a wrong key is accepted")

    print(deployctl("down").strip())
    address = urlsplit(access["base_url"])
    with socket.socket() as probe:
        require(probe.connect_ex((address.hostname, address.port)) != 0, f"port {address.port} still answers")
    state = Path(os.environ["XDG_STATE_HOME"]) / "deployctl"
    # Who did what stays (docs/safety.md); of the deployment itself nothing does.
    left = [str(path) for path in state.rglob("*") if path.name != ".audit.log"] if state.exists() else []
    require(not left, f"state is left: {left}")
    require(not (running := processes_naming(str(state))), f"processes are left: {running}")
    print("nothing is left: no process, no port, no state")


def deployctl(*arguments: str) -> str:
    return subprocess.run([DEPLOYCTL, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def processes_naming(folder: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.startswith(folder) for word in words):
            found.append(" ".join(words).strip())
    return found


def require(holds: bool, failure: str) -> None:
    if not holds:
        sys.exit(f"main job: {failure}")


if __name__ == "__main__":
    main()
