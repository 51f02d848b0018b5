"""The service against its own description: no question that it allows breaks it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serving import keep, serving

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from schemathesis.core.failures import FailureGroup  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from analysis.serve import create_app  # noqa: E402
from stabmap import example_map  # noqa: E402

TOKEN = "correct-horse"
HASH = "0123456789abcdef"
#: The ranges of a map are no part of the description: a place outside is well-formed, and refused.
LEFT_OUT = [positive_data_acceptance]
QUICK = settings(max_examples=8, suppress_health_check=list(HealthCheck))
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PATHS = sorted(create_app(Path("nowhere"), TOKEN).openapi()["paths"].items())
OPERATIONS = [(path, method) for path, methods in PATHS for method in methods]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    keep(home, HASH, example_map(), title="first map", state="complete", points=64, updated=1.0)
    with serving(home, TOKEN) as found:
        yield found


@pytest.fixture(scope="module")
def description(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_anything_may_be_asked(
    description: Any, path: str, method: str, mode: GenerationMode
) -> None:
    """Whatever fits the description, and what does not: each answer is one that it names."""
    operation = description[path][method.upper()]
    if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body or "{" in path):
        pytest.skip("takes nothing that could be wrong")

    @QUICK
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(headers=HEADERS, excluded_checks=LEFT_OUT)

    ask()


@pytest.mark.parametrize(("path", "method"), [o for o in OPERATIONS if "{" in o[0]])
def test_a_sweep_that_is_there(description: Any, path: str, method: str) -> None:
    """Names that are made up find no sweep; here each question meets a map."""
    found = []
    few = 2 if "." in path or "page" in path else QUICK.max_examples  # drawing takes a second

    @settings(QUICK, max_examples=few)
    @given(description[path][method.upper()].as_strategy())
    def ask(case: Any) -> None:
        case.path_parameters["sweep"] = HASH
        answer = case.call_and_validate(headers=HEADERS, excluded_checks=LEFT_OUT)
        found.append(answer.status_code)

    ask()
    assert set(found) <= {200, 422}
    # Places, axes and kinds of boundaries that are made up are none.
    assert 200 in found or path.endswith(("classify", "max_stable", "{kind}"))


def test_what_a_description_leaves_out_is_noticed(address: str, description: Any) -> None:
    """The checks of this file do find an answer that is not described."""
    raw = copy.deepcopy(description.raw_schema)
    del raw["paths"]["/sweeps/{sweep}"]["get"]["responses"]["404"]
    less = schemathesis.openapi.from_dict(raw)
    for schema, fails in ((description, False), (less, True)):
        case = schema["/sweeps/{sweep}"]["GET"].Case(path_parameters={"sweep": "nothing"})
        expected = pytest.raises(
            FailureGroup, check=lambda group: "Received: 404" in str(group.exceptions)
        )
        with expected if fails else nullcontext():
            case.call_and_validate(base_url=address, headers=HEADERS, excluded_checks=LEFT_OUT)
