"""Metrics: pure functions of features."""
