"""The builder ``layers`` does what every builder does."""

from __future__ import annotations

import pytest

from builder_contract import BuilderContract

pytestmark = pytest.mark.xdist_group("engine")


class TestLayers(BuilderContract):
    builder = "layers"
