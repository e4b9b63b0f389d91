"""What steps get and give: secrets, templates, configs."""

from __future__ import annotations

import base64
import json
import tempfile
from typing import TYPE_CHECKING

import pytest

from engine_bases import base_of, tar_of
from envbuild.build.archive import SavedImage, SavedLayer
from envbuild.build.engine_info import EngineInfo, builder_parameters
from envbuild.build.secrets import Secrets
from envbuild.build.steps_image import Limits, finish, steps_dockerfile, template
from envbuild.digest import Digest
from envbuild.errors import BuildError, IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

INFO = EngineInfo(
    "unix:///x", "20.10.24+dfsg1", "overlay2", buildkit=True, podman=False, containerd_store=False
)


def test_the_template_owns_the_first_line() -> None:
    text = steps_dockerfile("# syntax=evil\nRUN x\n")
    assert text.startswith("# ")
    assert "=" not in text.splitlines()[0]
    assert "syntax=" not in template("steps.Dockerfile")
    assert text.endswith("FROM ${ENVBUILD_BASE}\n# syntax=evil\nRUN x\n")


def test_secrets_are_found_as_they_are_quoted_and_in_base64(tmp_path: Path) -> None:
    value = 'pass"word\\'
    (tmp_path / "file").write_text(value + "\n")
    secrets = Secrets.read({"file": tmp_path / "file", "short": b"x"})
    for leak in (value, json.dumps(value), base64.b64encode(value.encode()).decode()):
        assert secrets.found_in(f"before {leak} after".encode()) == {"file"}
        assert "pass" not in secrets.redact(f"before {leak} after")
        assert base64.b64encode(value.encode()).decode() not in secrets.redact(leak)
    assert secrets.found_in(b"x pass word") == frozenset()
    assert value not in repr(secrets)


def test_a_secret_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="'token' cannot be read: No such file"):
        Secrets.read({"token": tmp_path / "none"})


def finished(config: dict[str, object], *layers: SavedLayer, secrets: Secrets | None = None) -> None:
    folder = tempfile.TemporaryDirectory()
    try:
        saved = SavedImage(json.dumps(config).encode(), layers)
        finish(base_of(tar_of({"base": b""})), saved, secrets or Secrets(), folder)
    finally:
        folder.cleanup()


def test_an_image_on_another_base_is_refused() -> None:
    with pytest.raises(IntegrityError, match="other layers"):
        finished({}, SavedLayer(Digest.of(b"another"), None))


def test_a_secret_in_the_config_or_in_a_layer_is_refused(tmp_path: Path) -> None:
    below = SavedLayer(Digest.of(tar_of({"base": b""})), None)
    config: dict[str, object] = {
        "rootfs": {"diff_ids": [str(below.diff_id)]},
        "config": {"Env": ["A=hunter22"]},
    }
    secrets = Secrets({"token": b"hunter22"})
    with pytest.raises(BuildError, match="secret token"):
        finished(config, below, secrets=secrets)
    leaky = SavedLayer(Digest.of(b"x"), tmp_path, frozenset({"token"}))
    with pytest.raises(BuildError, match="secret token"):
        finished({**config, "config": {}}, below, leaky, secrets=secrets)


def test_which_builder_is_asked_for() -> None:
    limits = Limits(memory=1 << 30, cpus=0.5)
    assert builder_parameters("RUN --mount=type=cache,target=/c x", Limits(), INFO) == {"version": "2"}
    assert builder_parameters("RUN x\nCOPY --from=x --chown=1 a b", limits, INFO) == {
        "version": "1",
        "nocache": "1",
        "memory": str(1 << 30),
        "memswap": str(1 << 30),
        "cpuperiod": "100000",
        "cpuquota": "50000",
    }
    for steps in ("RUN --mount=type=cache,target=/c x", "COPY --link a b", "  run --network=none x"):
        with pytest.raises(BuildError, match="BuildKit"):
            builder_parameters(steps, limits, INFO)


@pytest.mark.parametrize(
    "name", ["steps.Dockerfile", "post-link.Dockerfile", "environment.Dockerfile", "wheel.Dockerfile"]
)
def test_a_template_names_no_front_end_and_begins_with_a_comment(name: str) -> None:
    text = template(name)
    assert text.startswith("# ")
    assert "syntax=" not in text
    assert "<<" not in text, "old front ends have no heredocs"
    assert name in template("README.md")
