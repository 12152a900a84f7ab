"""The whole journey with the real engine: torch is installed on the machine, and answers as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.client import OpenAIClient
from runtime.sizing import Machine
from tests.e2e.cloud_journey import MODELS, journey, put_model
from tests.e2e.torch_model import PROMPT, TOKENS, cpu_build, write_model

CPU = Machine("a machine without a GPU", ram_bytes=8 * 2**30, free_ram_bytes=6 * 2**30, cpus=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_from_a_bucket_is_served_by_torch_as_transformers_generates_it(tmp_path: Path) -> None:
    version, folder = cpu_build(), tmp_path / "real"
    expected = write_model(folder)
    with journey(
        "bookworm", "aws", tmp_path, disk="4g", torch=version, values={"model": f"s3://{MODELS}/real"}
    ) as made:
        put_model(made.store, folder, "real")
        release = made.order(machine=CPU)
        made.guest.boot()
        made.wait_ready(release)
        access = made.access()
        with (
            made.network.operator.network_entered(),
            OpenAIClient(access.base_url, access.api_key, access.certificate) as client,
        ):
            answer = client.continue_text(access.model, PROMPT, max_tokens=TOKENS)
        assert answer.text == expected
        assert f"torch-{version}-" in " ".join(made.index.fetched).replace("%2B", "+")
