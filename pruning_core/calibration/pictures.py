"""Datasets of pictures: decoded only as far as they are needed, resized and normalised as the recipe says."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from pruning_core.calibration.dataset import Dataset
from pruning_core.errors import DatasetError
from pruning_core.preprocess import Preprocess, pair, resolve
from pruning_core.report import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

#: Of one encoded picture; and of one decoded, before and after resizing.
MAX_ENCODED_BYTES = 64 * 2**20
MAX_PIXELS = 2**26
#: All inputs together, as the network takes them.
MAX_INPUT_BYTES = 16 * 2**30
#: What the inspection decodes of a dataset, to tell broken files before a job does.
PROBED = 16

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
# Whatever Pillow's decoders meet in a broken file; none of these is a defect of this program.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, RuntimeError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Encoded pictures in a fixed order.

    Attributes:
        format: "parquet", "zip" or "tar".
        samples: How many there are.
        labels: Class indices, int64, of shape (samples,); None where there are none.
        classes: Their names, in order; empty where these are not known.
        read: Given rising indices, yields the encoded bytes of each.
    """

    format: str
    samples: int
    labels: Tensor | None
    classes: tuple[str, ...] = ()
    read: Callable[[Sequence[int]], Iterator[bytes]]

    @property
    def has_labels(self) -> bool:
        """Whether every picture has a class."""
        return self.labels is not None

    def probe(self) -> list[tuple[int, int]]:
        """Decode some pictures, evenly over the file, and return the (height, width) of each.

        Raises:
            DatasetError: One of them is broken, too large or of another format.
        """
        chosen = spread(self.samples, PROBED)
        pictures = (decoded(data, index, "rgb") for index, data in zip(chosen, self.read(chosen), strict=True))
        return [(picture.height, picture.width) for picture in pictures]


class PictureInput(Protocol):
    """A network input, as far as pictures must fit it."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int | None, ...]: ...  # noqa: D102


def spread(count: int, most: int) -> list[int]:
    """Return at most so many indices below ``count``, rising and evenly apart.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    taken = min(count, most)
    return [i * count // taken for i in range(taken)]


def prepare(
    pictures: Pictures, inputs: Sequence[PictureInput], wanted: Preprocess | None
) -> tuple[Dataset, Preprocessing]:
    """Decode pictures into the inputs of a network.

    Args:
        pictures: The dataset.
        inputs: What the network takes.
        wanted: The recipe's block; what it leaves open follows from the network.

    Returns:
        The samples, and every step as it was done.

    Raises:
        DatasetError: A picture cannot be decoded.
        RecipeError: The block and the network do not fit each other.
    """
    import PIL

    how = resolve(wanted, [(str(entry.dtype).removeprefix("torch."), entry.shape) for entry in inputs])
    assert how.crop is not None
    assert how.resize is not None
    assert how.channels is not None
    chosen = spread(pictures.samples, how.samples)
    shape = (len(chosen), len(how.mean), *pair(how.crop))
    size = 4 * int(np.prod(shape, dtype=np.float64))
    if size > MAX_INPUT_BYTES:
        raise DatasetError(
            f"{len(chosen)} pictures of this size take {size} bytes.",
            expected=f"at most {MAX_INPUT_BYTES} bytes",
            received=size,
            advice='Give a smaller "samples" in the recipe\'s "preprocess".',
        )
    x = torch.empty(shape, dtype=inputs[0].dtype)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    for row, (index, data) in enumerate(zip(chosen, pictures.read(chosen), strict=True)):
        picture = resized(decoded(data, index, how.channels), how, index)
        values = torch.from_numpy(np.array(picture, dtype=np.uint8)).view(*pair(how.crop), -1).permute(2, 0, 1)
        x[row] = (values.float() / 255 - mean) / std
    labels = None if pictures.labels is None else pictures.labels[torch.tensor(chosen)]
    record = Preprocessing(
        samples=len(chosen),
        of=pictures.samples,
        resize=how.resize,
        crop=pair(how.crop),
        channels=how.channels,
        mean=how.mean,
        std=how.std,
        interpolation=how.interpolation,
        decoder=f"Pillow {PIL.__version__}",
    )
    return Dataset(inputs=(x,), labels=labels), record


def decoded(data: bytes, index: int, channels: str) -> Image:
    """Return one picture in colour or grey.

    Raises:
        DatasetError: It is no picture of a format that is read, is broken, or has too many pixels.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(
            "Pictures cannot be decoded here: Pillow is not installed.",
            advice="Install it: pip install 'pruning-service[data]'.",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise _too_large(index, picture.width, picture.height)
                if picture.mode not in _MODES:
                    raise DatasetError(
                        f"Picture {index} has the pixel format {picture.mode!r}.",
                        expected="8 bits in each channel: grey or colour",
                        received=picture.mode,
                        advice="Save it with 8 bits in each channel.",
                        index=index,
                    )
                return picture.convert("L" if channels == "l" else "RGB")
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"Picture {index} cannot be decoded: {type(error).__name__}: {str(error)[:200]}",
            expected=f"a complete picture: {', '.join(_FORMATS)}",
            received=f"{len(data)} bytes that begin with {data[:8].hex(' ')}",
            advice="Remove it or save it again.",
            index=index,
        ) from error


def resized(picture: Image, how: Preprocess, index: int) -> Image:
    """Return a picture resized and cropped as a block with nothing left open says.

    An integer ``resize`` is the shorter side; the longer one is rounded down. The crop's corner is rounded to the even
    pixel where the margin is odd.
    """
    from PIL import Image

    assert how.resize is not None
    assert how.crop is not None
    if isinstance(how.resize, int):
        short = min(picture.size)
        width, height = (how.resize * side // short for side in picture.size)
    else:
        height, width = how.resize
    if width * height > MAX_PIXELS:
        raise _too_large(index, width, height)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[how.interpolation.upper()])
    tall, wide = pair(how.crop)
    left, top = round((width - wide) / 2), round((height - tall) / 2)
    return picture.crop((left, top, left + wide, top + tall))


def _too_large(index: int, width: int, height: int) -> DatasetError:
    return DatasetError(
        f"Picture {index} has {width} x {height} pixels.",
        expected=f"at most {MAX_PIXELS} pixels, also after resizing the shorter side",
        received=[height, width],
        advice="Scale the picture down, or cut it to a usual shape.",
        index=index,
    )
