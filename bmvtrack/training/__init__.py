"""Pretraining of the encoder."""

from bmvtrack.training.options import PretrainOptions
from bmvtrack.training.pretrain import pretrain

__all__ = ["PretrainOptions", "pretrain"]
