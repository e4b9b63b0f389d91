"""The pip section: from requirements to one reproducible layer a wheel. Nothing of a wheel is ever run."""
