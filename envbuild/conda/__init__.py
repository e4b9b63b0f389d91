"""Conda packages: solving, linking and turning into layers."""
