"""Doubles and peers for the tests."""
