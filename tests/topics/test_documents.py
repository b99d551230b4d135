"""`/asyncapi.json`."""

import json
from typing import Any

import httpx
import jsonschema
import pytest

from tests.conftest import PROJECT, Running

SCHEMA = PROJECT / "tests" / "topics" / "asyncapi" / "asyncapi-3.0.0.json"


@pytest.fixture(scope="module")
def document(one: Running) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"{one.url}/asyncapi.json").json()
    return document


def problems(document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    return [f"{list(error.path)}: {error.message[:200]}" for error in validator.iter_errors(document)]


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert problems(document) == []
    channel = document["channels"]["rooms.id"]
    assert problems({**document, "channels": {"rooms.id": {**channel, "adress": "rooms/{id}"}}})


def test_its_references_lead_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Any:
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            value = list(value.values())
        for item in value if isinstance(value, list) else ():
            yield from references(item)

    for reference in references(document):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/")]


def test_it_says_what_is_durable_and_who_may_publish(document: dict[str, Any]) -> None:
    channels, operations = document["channels"], document["operations"]
    assert (channels["rooms.id"]["address"], channels["rooms.id"]["x-delivery"]) == ("rooms/{id}", "durable")
    cursors = channels["cursors.id"]
    assert (cursors["x-delivery"], "not durable" in cursors["description"]) == ("ephemeral", True)
    assert cursors["x-when-full"] == {"action": "conflate", "key": "by"}
    assert ("rooms.id.publish" in operations, "short.id.publish" in operations) == (True, False)
