"""Errors say whose fault they are, where, and what to do."""

from __future__ import annotations

import pickle

import pytest

from envbuild import errors
from envbuild.errors import SpecError, counted

EXIT_CODES = {
    "EnvbuildError": 1,
    "SpecError": 2,
    "CacheMiss": 3,
    "RegistryError": 4,
    "NotFound": 4,
    "Unavailable": 4,
    "Unauthorized": 4,
    "TagMoved": 4,
    "ChannelError": 4,
    "SolveError": 5,
    "BuildError": 6,
    "StepFailed": 6,
    "BuildLimit": 6,
    "IntegrityError": 7,
    "DeadlineExceeded": 8,
    "StorageError": 1,
    "StorageFull": 1,
}


def test_every_error_has_the_exit_code_of_its_kind() -> None:
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.EnvbuildError)
    }
    assert found == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_error_carries_its_message_and_hint(name: str) -> None:
    error = getattr(errors, name)("it is broken", hint="mend it")
    assert (str(error), error.message, error.hint) == ("it is broken", "it is broken", "mend it")
    assert isinstance(error, errors.EnvbuildError)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_only_outages_and_deadlines_are_worth_a_retry(name: str) -> None:
    assert getattr(errors, name)("x").retryable == (name in {"Unavailable", "DeadlineExceeded"})


def test_retryable_can_be_said() -> None:
    assert errors.RegistryError("x", retryable=True).retryable
    assert not errors.Unavailable("x", retryable=False).retryable


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({}, "seen x"),
        ({"source": "a.yml"}, "a.yml: seen x"),
        ({"source": "a.yml", "line": 3}, "a.yml:3: seen x"),
        ({"source": "a.yml", "line": 3, "column": 7}, "a.yml:3:7: seen x"),
    ],
)
def test_a_spec_error_names_its_place(place: dict[str, str | int], expected: str) -> None:
    error = errors.SpecError("seen x", **place)  # type: ignore[arg-type]
    assert str(error) == expected
    assert error.message == "seen x"


def test_a_miss_is_neither_an_outage_nor_a_registry_in_trouble() -> None:
    assert not issubclass(errors.NotFound, errors.Unavailable)
    assert not issubclass(errors.CacheMiss, errors.RegistryError)


@pytest.mark.parametrize(("number", "text"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers")])
def test_counts_are_written_as_people_write_them(number: int, text: str) -> None:
    assert counted(number, "layer") == text
    assert (
        counted(number, "dependency", "dependencies")
        == f"{number} {'dependency' if number == 1 else 'dependencies'}"
    )


def test_mistakes_together_stand_in_the_order_of_their_places() -> None:
    found = [
        SpecError("c", source="x", line=9),
        SpecError("a", source="x", line=2),
        SpecError("b", source="y", line=1),
    ]
    first = SpecError.together(found)
    assert [each.message for each in (first, *first.others)] == ["a", "c", "b"]
    again = SpecError.together([SpecError("0", source="x", line=1), first])
    assert [each.message for each in (again, *again.others)] == ["0", "a", "c", "b"]
    assert all(not each.others for each in again.others)
    assert [each.message for each in pickle.loads(pickle.dumps(again)).others] == ["a", "c", "b"]  # noqa: S301
