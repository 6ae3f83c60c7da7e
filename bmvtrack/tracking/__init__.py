"""Trackers, evaluation protocols, metrics, and reports."""
