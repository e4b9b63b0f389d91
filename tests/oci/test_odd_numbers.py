"""Numbers and dates in the answers of registries, channels and token servers: none is too odd to be read."""

from __future__ import annotations

import time

import pytest

from envbuild.errors import Unauthorized
from envbuild.oci.auth import _parse_token
from envbuild.oci.transport import failure, parse_retry_after

_DAY = 86_400


@pytest.mark.parametrize(
    "text",
    [
        "²", "٣", "9" * 5000, "-1", "1e9", "", " ", "Mon", "Mon, 01 Jan 2024 ::",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999",
        "Mon, 01 Jan 0001 00:00:00 -0000", "Mon, 01 Jan 9999 23:59:59 -2359",
    ],
)  # fmt: skip
def test_any_retry_after_is_seconds_or_nothing(text: str) -> None:
    seconds = parse_retry_after(text)
    assert seconds is None or seconds >= 0
    assert "answered 429" in str(failure(429, {"Retry-After": text}, b"", "x"))


@pytest.mark.parametrize(
    "seconds", ["1" + "0" * 400, "1e999", "NaN", "-Infinity", "-5", "true", '"60"', "[]", "{}", "null"]
)
def test_any_life_of_a_token_is_at_most_a_day(seconds: str) -> None:
    token = _parse_token(f'{{"token": "abc", "expires_in": {seconds}}}'.encode(), "x")
    assert 0 < token.expires - time.monotonic() <= _DAY


def test_a_number_that_python_does_not_read_is_no_token() -> None:
    with pytest.raises(Unauthorized):
        _parse_token(b'{"token": "abc", "expires_in": 1' + b"0" * 5000 + b"}", "x")
