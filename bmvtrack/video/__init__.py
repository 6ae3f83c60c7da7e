"""Tracking of the user's own videos: overlay video, boxes as CSV and JSON, and an HTML report."""
