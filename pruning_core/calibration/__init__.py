"""Calibration and validation data: untrusted files in, tensors that fit a network out."""

from pruning_core.calibration.bind import InputSignature, bind
from pruning_core.calibration.dataset import Dataset
from pruning_core.calibration.pictures import Pictures, prepare
from pruning_core.calibration.read import RawDataset, read_dataset

__all__ = ["Dataset", "InputSignature", "Pictures", "RawDataset", "bind", "prepare", "read_dataset"]
