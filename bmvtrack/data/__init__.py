"""Sequences and their readers, patches, and training data on the device."""
