"""What activation scripts set is what a real shell sets; what is more than that is left out and named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuild.conda.activate import activate, is_activation
from envbuild.conda.package import Package
from fixtures_channel import ChannelFolder

GIVEN = {"PATH": "/opt/env/bin:/usr/bin", "CONDA_PREFIX": "/opt/env", "BASE": "yes", "EMPTY": ""}
SCRIPT = "etc/conda/activate.d/it.sh"


def ours(script: str) -> dict[str, str]:
    result = activate({SCRIPT: script}, GIVEN)
    assert result.left_out == {}
    return result.variables


def theirs(script: str, folder: Path, shell: str) -> dict[str, str]:
    path = folder / "script.sh"
    path.write_text(script)
    done = subprocess.run(
        [shell, "-c", f'. "{path}"; exec env -0'], env=GIVEN, capture_output=True, check=True, text=True
    )
    found = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    return {
        name: value
        for name, value in found.items()
        if GIVEN.get(name) != value and name not in {"PWD", "OLDPWD", "SHLVL", "_"}
    }


UNDERSTOOD = {
    "export": "export A=1 B=\"two words\" C='$not' D=a\"b\"'c' E=",
    "prefix": 'export X="${CONDA_PREFIX}/share:$CONDA_PREFIX"\nexport Y=$CONDA_PREFIX/y',
    "comments": "#!/bin/sh\n# export A=1\n\nexport B=1 # no\nexport C=a#b\n",
    "later export": "A=1\nexport A\nB=hidden\n",
    "several": "A=1; export A; export B=$A\n",
    "continued": 'export A="one \\\ntwo" \\\n  B=2\n',
    "escapes": r'export A="a\"b\$c\\d\e" B=a\ b C=\$x D="$"',
    "guard": 'if [ -z "${X+x}" ]; then\n  export X=new\nelse\n  export Y=old\nfi',
    "guard outside of quotes": "[ -z ${X+x} ] && export X=new\nif [ -z ${BASE+x} ]; then export Y=1; fi",
    "guard of the base's": 'if test -n "$BASE"\nthen\n export OLD="$BASE"\n export BASE=other\nfi',
    "elif": 'if [ "$BASE" = no ]; then A=1; elif [ "$BASE" = "yes" ]; then A=2; else A=3; fi; export A',
    "nested": 'if [ -n "$BASE" ]; then if [ -z "$NO" ]; then export A=1; fi; export B=1; fi',
    "not": 'if [ ! -z "$BASE" ]; then export A=1; fi',
    "different": '[ "$BASE" != "no" ] && export A=1 || export A=2',
    "or": '[ -n "$NO" ] || export A=1\n[ -n "$NO" ] &&\n export B=1',
    "defaults": 'export A="${NO:-x}" B="${EMPTY-x}" C="${EMPTY:-x}" D="${BASE:+y}" E="${NO+y}"',
    "default in default": 'export A="${NO:-${BASE:-x}/z}"',
    "appending": 'export PATH="${PATH}:${CONDA_PREFIX}/extra"\nexport L="${L:+$L:}/opt"',
    "unset": "export A=1 B=2\nunset A\nunset -v NEVER",
    "keeping what was": 'export _OLD="${X:-}"\nexport X="$CONDA_PREFIX/x"\n: "${_OLD}"\ntrue',
    "taken once": "if false; then export A=1; elif true; then export B=1; elif true; then export C=1; fi",
    "windows' line ends": "export A=1\r\nexport B=2",
}


@pytest.mark.parametrize("script", UNDERSTOOD.values(), ids=UNDERSTOOD.keys())
def test_what_is_understood_is_what_a_shell_does(script: str, tmp_path: Path) -> None:
    script = script.replace("\r", "")
    for shell in ("sh", "bash"):
        assert ours(script) == theirs(script, tmp_path, shell)


def test_double_brackets_are_bashs(tmp_path: Path) -> None:
    script = "if [[ -z $NO && 1 ]]; then export A=1; fi"
    assert activate({SCRIPT: script}, GIVEN).left_out
    script = "[[ $BASE == yes ]] && export A=1\nif [[ -n ${NO:-} ]]; then export B=1; fi"
    assert ours(script) == theirs(script, tmp_path, "bash") == {"A": "1"}


MORE = {
    "substitution": "export A=$(uname)",
    "backticks": "export A=`uname`",
    "in quotes": 'export A="$(pwd)"',
    "command": "mkdir -p /tmp/x",
    "command not reached": 'if [ -n "$NO" ]; then rm -rf /; fi',
    "source": '. "$CONDA_PREFIX/etc/x.sh"',
    "function": "f() { export A=1; }",
    "loop": "for x in 1 2; do export A=$x; done",
    "case": 'case "$BASE" in yes) export A=1;; esac',
    "redirection": "echo x > /dev/null",
    "pipe": "true | true",
    "background": "true & export A=1",
    "group": "{ export A=1; }",
    "file test": 'if [ -f "$CONDA_PREFIX/x" ]; then export A=1; fi',
    "home": 'export A="$HOME/.cache"',
    "tilde": "export A=~/x",
    "positional": 'export A="$1"',
    "status": "export A=$?",
    "arithmetic": "export A=$((1 + 1))",
    "length": 'export A="${#BASE}"',
    "stripping": 'export A="${BASE%s}"',
    "assigning": ': "${A:=1}"',
    "complaining": ': "${A:?no}"',
    "pattern": "[[ $BASE == y* ]] && export A=1",
    "splitting": "[ $BASE = yes ] && export A=1",
    "bare -n": "[ -n ${NO+x} ] && export A=1",
    "unset of the base's": "unset BASE",
    "strange name": "export 1A=2",
    "open quote": 'export A="x',
    "open if": "if true; then export A=1",
    "open test": "[ -n x && export A=1",
    "command in a variable": "$BASE",
    "one assignment for a command": "A=1 true; A=2 export B",
    "shell options": "set -e",
    "alone": "then",
    "deep": 'export A="' + "${A:-" * 50 + "}" * 50 + '"',
}


@pytest.mark.parametrize("script", MORE.values(), ids=MORE.keys())
def test_what_is_more_is_left_out_whole(script: str) -> None:
    result = activate({SCRIPT: f"export FIRST=1\n{script}\n"}, GIVEN)
    assert result.variables == {}
    assert result.left_out.keys() == {SCRIPT}
    assert result.left_out[SCRIPT]


def test_variables_come_before_scripts_and_all_by_name() -> None:
    files: dict[str, str | None] = {
        "etc/conda/activate.d/b.sh": 'export ORDER="${ORDER}b" SEEN="$FROM_JSON"',
        "etc/conda/activate.d/a.sh": 'export ORDER="${ORDER}a"',
        "etc/conda/activate.d/broken.sh": "uname",
        "etc/conda/activate.d/long.sh": None,
        "etc/conda/env_vars.d/x.json": json.dumps({"FROM_JSON": "$literal", "ORDER": "x"}),
        "etc/conda/env_vars.d/wrong.json": "[",
        "etc/conda/env_vars.d/number.json": '{"A": 1}',
        "etc/conda/env_vars.d/name.json": '{"A=B": "1"}',
        "conda-meta/state": json.dumps({"env_vars": {"FROM_STATE": "s", "FROM_JSON": "state"}, "version": 1}),
    }
    result = activate(files, GIVEN)
    assert result.variables == {"ORDER": "xab", "SEEN": "state", "FROM_JSON": "state", "FROM_STATE": "s"}
    assert result.left_out.keys() == {
        "etc/conda/activate.d/broken.sh",
        "etc/conda/activate.d/long.sh",
        "etc/conda/env_vars.d/wrong.json",
        "etc/conda/env_vars.d/number.json",
        "etc/conda/env_vars.d/name.json",
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("etc/conda/activate.d/x.sh", True),
        ("etc/conda/env_vars.d/x.json", True),
        ("conda-meta/state", True),
        ("etc/conda/activate.d/x.fish", False),
        ("etc/conda/activate.d/sub/x.sh", False),
        ("etc/conda/deactivate.d/x.sh", False),
        ("__clobbers__/a/etc/conda/activate.d/x.sh", False),
    ],
)
def test_only_these_files_take_part(path: str, expected: bool) -> None:
    assert is_activation(path) is expected


@given(st.text(alphabet="export ABif[]then;fi=\"'${}:-+\n|&\\#x/ ", max_size=60))
def test_no_script_gets_through_or_hangs(script: str) -> None:
    result = activate({SCRIPT: script}, GIVEN)
    assert not result.left_out or not result.variables


def test_the_fixture_package_activates_as_it_says(channel: ChannelFolder) -> None:
    with channel.package("activation").open("rb") as stream:
        package = Package.open(stream, "activation")
        files = {
            member.path: member.read().decode() for member in package.members() if is_activation(member.path)
        }
    result = activate(files, GIVEN)
    assert result.left_out == {}
    assert result.variables == {
        "FIXTURE_ACTIVATED": "yes, in /opt/env",
        "FIXTURE_VARIABLE": "from a package",
    }
