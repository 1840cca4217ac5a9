"""An untrusted dataset file becomes named tensors: nothing is unpickled, sizes are checked before memory is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pruning_core.calibration import npz, parquet, safetensors_file, tar_pictures, zip_pictures
from pruning_core.calibration.finite import first_not_finite
from pruning_core.calibration.pictures import Pictures
from pruning_core.errors import DatasetError

#: Names that hold labels.
LABELS = ("y", "labels")

#: More than this is refused before anything is read; the sandbox's memory limit may be lower.
MAX_BYTES = 16 * 2**30


class RawDataset(Mapping[str, Tensor]):
    """Arrays by name, all finite and with the same first dimension N >= 1; not yet matched with a network."""

    def __init__(self, format: str, arrays: Mapping[str, Tensor]) -> None:
        """Check what every dataset must have.

        Args:
            format: "npz", "safetensors" or "parquet".
            arrays: Tensors of shape (N, …), by name.

        Raises:
            DatasetError: There is no array or no sample, the arrays disagree on N, or hold a NaN or an infinity.
        """
        self.format = format
        self._arrays = dict(arrays)
        shapes = {name: list(array.shape) for name, array in self._arrays.items()}
        if not shapes:
            raise DatasetError("The dataset holds no array.", expected="'x' or 'inputs', and optionally 'y'")
        for name, shape in shapes.items():
            if 0 in shape or not shape:
                what = "has no samples" if shape else "is a single number"
                raise DatasetError(
                    f"Array {name!r} {what}: its shape is {tuple(shape)}.",
                    expected="shape (samples, …) with every dimension at least 1",
                    received=shape,
                    array=name,
                )
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise DatasetError(
                "The arrays disagree on the number of samples, their first dimension: "
                + ", ".join(f"{name!r} has {shape[0]}" for name, shape in shapes.items())
                + ".",
                expected="the same first dimension in every array",
                received=shapes,
            )
        for name, array in self._arrays.items():
            index = first_not_finite(array)
            if index is not None:
                raise DatasetError(
                    f"Array {name!r} holds {float(array[index])} at index {index}.",
                    expected="finite numbers only",
                    received=str(float(array[index])),
                    advice="Remove or repair the samples that hold NaN or infinity.",
                    array=name,
                    index=list(index),
                )

    def __getitem__(self, name: str) -> Tensor:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def samples(self) -> int:
        """N, the first dimension of every array."""
        return len(next(iter(self._arrays.values())))

    @property
    def has_labels(self) -> bool:
        """Whether an array is named like labels."""
        return any(name in self._arrays for name in LABELS)


def read_dataset(path: str | Path, *, max_bytes: int = MAX_BYTES) -> RawDataset | Pictures:
    """Read a dataset; the format shows in its first bytes, the name does not matter.

    Arrays come as npz, safetensors or Parquet; pictures as Parquet, or as a zip or tar of class folders. Pictures are
    not decoded yet: `bind` does it, for a network.

    Args:
        path: The file.
        max_bytes: Refuse arrays of more bytes than this, all together, before reading them.

    Raises:
        DatasetError: The file is of another format, truncated or hostile, or its arrays cannot be a dataset.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(262)
    if start.startswith(b"PK\x03\x04"):
        if zip_pictures.holds_pictures(path):
            return zip_pictures.read(path)
        return RawDataset("npz", npz.read(path, max_bytes=max_bytes))
    if start.startswith(b"PAR1"):
        found = parquet.read(path, max_bytes=max_bytes)
        return found if isinstance(found, Pictures) else RawDataset("parquet", found)
    if start[257:] == b"ustar":
        return tar_pictures.read(path)
    if start[8:9] == b"{":
        return RawDataset("safetensors", safetensors_file.read(path, max_bytes=max_bytes))
    raise DatasetError(
        "The dataset is of no format that can be read here.",
        expected=["npz", "safetensors", "parquet", "a zip or tar of class folders with pictures"],
        received=f"a file that begins with the bytes {start[:9].hex(' ')}" if start else "an empty file",
        advice=(
            "This is a single .npy array: save it with numpy.savez(path, x=..., y=...)."
            if start.startswith(b"\x93NUMPY")
            else "Save the arrays with numpy.savez(path, x=..., y=...) or safetensors.torch.save_file."
        ),
    )
