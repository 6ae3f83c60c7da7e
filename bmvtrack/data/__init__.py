"""Sequences and their readers, patches, and on-device training data."""
