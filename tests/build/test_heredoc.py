"""Heredocs for older engines; the real shell says whether they mean the same (``test_engine``)."""

from __future__ import annotations

import json

import pytest

from envbuild.build.heredoc import lower_heredocs
from envbuild.errors import BuildError


def argument(dockerfile: str) -> str:
    (line,) = lower_heredocs(dockerfile).splitlines()
    shell, option, text = json.loads(line[line.index("[") :])
    assert (shell, option) == ("/bin/sh", "-c")
    return str(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN <<EOF\necho a\n  echo b\nEOF\n", "echo a\n  echo b\n"),
        ("RUN <<-EOF\n\techo a\n\tEOF\n", "echo a\n"),
        ("RUN <<'EOF'\necho $A\nEOF\n", "echo $A\n"),
        ("RUN python3 <<EOF\nprint(1)\nEOF\n", "python3 <<EOF\nprint(1)\nEOF"),
        (
            "RUN cat <<A > /x && cat 3<<B >&3\none\nA\ntwo\nB\n",
            "cat <<A > /x && cat 3<<B >&3\none\nA\ntwo\nB",
        ),
        ("run <<EOF\nEOF\n", ""),
        ("RUN <<EOF\nRUN <<OTHER\nEOF\n", "RUN <<OTHER\n"),
    ],
)
def test_run(text: str, expected: str) -> None:
    assert argument(text) == expected


def test_flags_and_shells_are_kept() -> None:
    text = 'RUN --mount=type=cache,target=/c <<EOF\na\nEOF\nSHELL ["/bin/bash", "-ec"]\nRUN <<EOF\nb\nEOF\n'
    assert lower_heredocs(text, ["/bin/ash", "-c"]).splitlines() == [
        'RUN --mount=type=cache,target=/c ["/bin/ash", "-c", "a\\n"]',
        'SHELL ["/bin/bash", "-ec"]',
        'RUN ["/bin/bash", "-ec", "b\\n"]',
    ]


@pytest.mark.parametrize(
    "text",
    [
        "RUN echo a\n",
        'RUN ["cat", "<<EOF"]\n',
        "RUN echo $((1<<2))\n",
        "ENV A=<<EOF\n",
        "RUN cat <<<word\n",
        "COPY a b\n",
    ],
)
def test_what_is_no_heredoc_stays(text: str) -> None:
    assert lower_heredocs(text) == text


@pytest.mark.parametrize(
    "text", ["COPY <<EOF /x\na\nEOF\n", "ADD <<EOF /x\na\nEOF\n", "RUN <<EOF\n#!/usr/bin/perl\nEOF\n"]
)
def test_what_older_engines_cannot_do(text: str) -> None:
    with pytest.raises(BuildError, match="does not know") as caught:
        lower_heredocs(text)
    assert "23" in (caught.value.hint or "")


def test_a_heredoc_without_an_end() -> None:
    with pytest.raises(BuildError, match="no end"):
        lower_heredocs("RUN <<EOF\na\n")
