"""Trackers, the protocols that judge them, metrics, and reports."""
