"""Soft actor-critic around the latent prior."""
