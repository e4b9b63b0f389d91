"""Helpers that start real parts for the tests."""
