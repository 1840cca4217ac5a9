"""Model files: bytes <-> `Network`. Uploaded bytes are read as data and never executed."""

from pruning_core.formats.files import same_bits
from pruning_core.formats.formats import model_format, read_model, write_model

__all__ = ["model_format", "read_model", "same_bits", "write_model"]
