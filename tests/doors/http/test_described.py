"""What /openapi.json describes, called with whatever it allows and with what it does not."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as chosen
from hypothesis import strategies as st

from worker.doors.http.description import describe_api
from worlds.doorway import Doorway

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
# None of these comes from the worker's own fault.
OURS = (500, 501, 505)


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    with Doorway({"HTTP_QUEUE": "100", "ALLOWED_IMAGE_HOSTS": "none.example"}) as door:
        yield door.opened()


@pytest.fixture(scope="module")
def api(door: Doorway) -> dict[str, Any]:
    described: dict[str, Any] = door.get("/openapi.json").json()
    return described


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a field's schema allows, as far as it says."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(one) for one in schema["anyOf"]])
    least, most = schema.get("minimum", 0), schema.get("maximum", 100)
    inner = {name: values(one) for name, one in schema.get("properties", {}).items()}
    items = values(schema["items"]) if "items" in schema else st.nothing()
    by_type: dict[str | None, st.SearchStrategy[Any]] = {
        "integer": st.integers(least, most),
        "number": st.floats(least, most),
        "boolean": st.booleans(),
        "array": st.lists(items, max_size=schema.get("maxItems", 4)),
        "object": st.fixed_dictionaries({}, optional=inner) | st.fixed_dictionaries(inner),
    }
    return by_type.get(schema.get("type"), st.text(max_size=40))


@chosen(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_is_a_fault_of_the_worker(door: Doorway, api: dict[str, Any], data: Any) -> None:
    fields = api["components"]["schemas"]["Input"]["properties"]
    # a side of 64, so that what is right is made at once
    names = data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    body = {"prompt": "x", "width": 64, "height": 64} | {
        name: data.draw(values(fields[name]) | ANY) for name in names
    }
    posts = [path for path, methods in api["paths"].items() if "post" in methods]
    path = data.draw(st.sampled_from([path for path in posts if "{" not in path]))
    wrapped = {"input": body} if path.startswith("/run") else body
    given_body = data.draw(st.just(wrapped) | ANY) if data.draw(st.booleans()) else wrapped
    text = json.dumps(given_body).encode()
    response = door.call("POST", path, data=text, headers={"Content-Type": "application/json"})
    assert response.status_code not in OURS, response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}


@chosen(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(job_id=st.text(max_size=40))
def test_no_id_is_a_fault_of_the_worker(door: Doorway, job_id: str) -> None:
    for method, path in (("GET", "status"), ("POST", "cancel"), ("GET", "result")):
        try:
            response = door.call(method, f"/{path}/{job_id}")
        except UnicodeError:
            continue  # the client's own
        assert response.status_code in (400, 404, 405), response.text


def test_every_reference_and_link_of_the_description_leads_somewhere(api: dict[str, Any]) -> None:
    """A client that is generated from it fails at the first that does not."""
    text = json.dumps(api)
    schemas = set(re.findall(r'"\$ref": "([^"]+)"', text))
    assert schemas == {f"#/components/schemas/{name}" for name in api["components"]["schemas"]}
    found = [
        route["operationId"] for methods in api["paths"].values() for route in methods.values()
    ]
    assert len(set(found)) == len(found)
    linked = [
        link["operationId"]
        for methods in api["paths"].values()
        for route in methods.values()
        for link in route["responses"]["200"].get("links", {}).values()
    ]
    assert set(linked) == {"status_id", "cancel_id", "result_id"}
    assert set(linked) < set(found)
    assert "/v1/audio/speech" not in api["paths"], "no model here speaks"


def test_operations_have_openapi_s_own_keys_and_a_job_is_a_body(api: dict[str, Any]) -> None:
    """A key that it does not know is passed over by every client."""
    known = {"operationId", "parameters", "requestBody", "responses", "security", "tags"}
    known |= {"summary", "description", "externalDocs", "callbacks", "deprecated", "servers"}
    operations = [one for path in api["paths"].values() for one in path.values()]
    assert set().union(*operations) <= known
    bodies = {path: set(api["paths"][path]["post"]) for path in ("/run", "/runsync")}
    assert all("requestBody" in keys for keys in bodies.values())


def test_the_description_is_openapis_word_for_word() -> None:
    fields = [
        describe_field("seed", "s", type="integer"),
        describe_field("task", "kind", enum=["a", "b"]),
        describe_field("task", "kind", enum=["b", "c"]),
        describe_field("seed", "n", enum=["none"]),
        describe_field("n", "task", type="string"),
    ]
    models = [{"tasks": ["edit"]}, {"tasks": ["speech"]}]
    document = describe_api({"worker_version": "1+cpu", "models": models, "input": fields})
    paths = document.pop("paths")
    text: Any = {"type": "string"}
    error = {
        "type": "object",
        "required": ["message", "type", "code", "param"],
        "properties": {
            **dict.fromkeys(("message", "type", "code"), text),
            "param": {"type": ["string", "null"]},
        },
    }
    words, described = ["a", "b", "c"], {"description": "any. Default: none"}
    names: dict[str, Any] = {
        **{name: {"type": "integer", **described} for name in ("seed", "s")},
        **{name: {"enum": words, **described} for name in ("task", "kind")},
        "n": {"enum": ["none"], **described},
    }
    schemas = {
        "Input": {"type": "object", "properties": names, "additionalProperties": True},
        "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
    }
    key = {"type": "http", "scheme": "bearer"}
    assert document == {
        "openapi": "3.1.0",
        "info": {"title": "worker", "version": "1+cpu"},
        "components": {"schemas": schemas, "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }
    refused = {"description": "Refused", "content": hold({"$ref": "#/components/schemas/Error"})}
    responses = {"200": {"description": "Done"}, "4XX": refused, "5XX": refused}
    policy = {"type": "object", "properties": {"executionTimeout": {"type": "integer"}}}
    given = {"$ref": "#/components/schemas/Input"}
    wrapped = {"input": given, "policy": policy}
    for path, name, place, schema in (
        ("/run", "run", "id", {"type": "object", "required": ["input"], "properties": wrapped}),
        ("/generate_async", "generate_async", "job_id", given),
    ):
        links = {
            other: {"operationId": other, "parameters": {"id": f"$response.body#/{place}"}}
            for other in ("status_id", "cancel_id", "result_id")
        }
        (operation,) = paths[path].values()
        operation.pop("summary")
        assert operation == {
            "operationId": name,
            "responses": {**responses, "200": {"description": "Done", "links": links}},
            "requestBody": {"required": True, "content": hold(schema)},
        }
    by_id = [{"name": "id", "in": "path", "required": True, "schema": text}]
    shown = {"responses": responses, "parameters": by_id, "summary": "Stop a job"}
    assert paths["/cancel/{id}"] == {"post": {"operationId": "cancel_id", **shown}}
    later = {"202": {"description": "Not done yet"}}
    assert paths["/result/{id}"]["get"]["responses"] == {**responses, **later}
    assert "links" in paths["/runsync"]["post"]["responses"]["200"]
    assert paths["/v1/audio/speech"]["post"]["requestBody"]["content"] == hold({"type": "object"})
    operations = [(path, *one) for path, methods in paths.items() for one in methods.items()]
    assert [(path, method) for path, method, _ in operations] == [
        *(
            ("/run", "post"),
            ("/runsync", "post"),
            ("/status/{id}", "get"),
            ("/cancel/{id}", "post"),
        ),
        *(("/generate", "post"), ("/generate_async", "post"), ("/result/{id}", "get")),
        *(("/v1/images/generations", "post"), ("/v1/images/edits", "post")),
        *(("/v1/audio/speech", "post"), ("/v1/models", "get"), ("/v1/models/{id}", "get")),
        *(("/health", "get"), ("/metrics", "get")),
    ]
    assert paths["/v1/models/{id}"]["get"]["operationId"] == "models_id"
    for _, _, operation in operations:
        assert operation.get("summary", "Any")[0].isupper()


def describe_field(name: str, alias: str, **schema: Any) -> dict[str, Any]:
    more = {"accepts": "any", "default": "none", "schema": schema}
    return {"field": name, "aliases": [alias], **more}


def hold(schema: Any) -> dict[str, Any]:
    """Return the content of a message in JSON."""
    return {"application/json": {"schema": schema}}


def test_every_route_that_is_described_is_there(door: Doorway, api: dict[str, Any]) -> None:
    for path, methods in api["paths"].items():
        for method in methods:
            response = door.call(method.upper(), path.replace("{id}", "x"))
            if response.status_code == 404:
                assert response.json()["error"]["code"] in ("job_not_found", "model_not_found")
            assert response.status_code not in (405, *OURS)
