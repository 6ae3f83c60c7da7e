"""Soft actor-critic with the latent prior."""
