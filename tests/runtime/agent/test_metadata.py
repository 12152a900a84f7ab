"""The agent asks the metadata service of both clouds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from runtime.agent.metadata import Metadata, MetadataError
from runtime.vm import Provider
from tests.lab.http_server import HttpServer
from tests.lab.metadata_service import Instance, MetadataService

INSTANCE = Instance("aws", "i-0abc", "eu-west-1", "eu-west-1a", "g6.xlarge", "", private_ip="10.0.0.7", public_ip=None)


@contextmanager
def serve(instance: Instance) -> Iterator[tuple[MetadataService, Metadata]]:
    service = MetadataService(instance)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = service.answer(self.command, self.path, headers)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = answer

        def log_message(self, *_: object) -> None:
            return

    with HttpServer(Handler) as server:
        yield service, Metadata(instance.provider, server.host, server.port)


@pytest.mark.parametrize("provider", ["aws", "alicloud"])
def test_it_gives_the_instance_and_its_addresses(provider: Provider) -> None:
    with serve(replace(INSTANCE, provider=provider, public_ip="203.0.113.9")) as (_, metadata):
        assert metadata.instance_id() == "i-0abc"
        assert metadata.addresses() == ("10.0.0.7", "203.0.113.9")


@pytest.mark.parametrize("provider", ["aws", "alicloud"])
def test_a_machine_of_an_intranet_has_its_private_address_only(provider: Provider) -> None:
    with serve(replace(INSTANCE, provider=provider)) as (_, metadata):
        assert metadata.addresses() == ("10.0.0.7",)


def test_a_service_without_tokens_is_asked_without() -> None:
    with serve(replace(INSTANCE, provider="alicloud", tokens_required=False)) as (service, metadata):
        service.token = ""  # what it hands out is not taken for a token
        assert metadata.instance_id() == "i-0abc"


def test_a_service_that_is_not_there_is_an_error_that_says_so() -> None:
    with pytest.raises(MetadataError, match="does not answer"):
        Metadata("aws", "127.0.0.1", 9).instance_id()
