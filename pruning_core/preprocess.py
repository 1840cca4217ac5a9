"""How pictures become a network's input: what a recipe says of it, and what follows from the network. No torch.

The steps, in this order: decode, convert to the channels, resize, crop the centre, divide by 255, subtract the mean and
divide by the standard deviation of each channel. Orientation tags are not followed, as training code ignores them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning_core.errors import RecipeError

#: Of a resized picture. Larger inputs are no pictures that a classifier takes.
MAX_SIDE = 4096
#: Pictures that are decoded of a dataset at most; the first limit that a user may raise is `Preprocess.samples`.
MAX_SAMPLES = 65_536

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Channel = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(gt=1e-6, le=1e6)]
Size = Side | tuple[Side, Side]


class Preprocess(BaseModel):
    """How pictures become the network's input: resize, crop the centre, scale to 0..1, normalise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    resize: Size | None = Field(
        default=None,
        description="The shorter side in pixels, the other in proportion; or [height, width]. null: the longer side of "
        "the crop.",
    )
    crop: Size | None = Field(
        default=None, description="Of the centre: one side, or [height, width]. null: what the network takes."
    )
    mean: tuple[Channel, ...] = Field(
        default=(0.0,), min_length=1, max_length=3, description="Subtracted after scaling to 0..1: for all or for each."
    )
    std: tuple[Deviation, ...] = Field(
        default=(1.0,), min_length=1, max_length=3, description="Divided by: for all channels or for each."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        default="bilinear", description="Pillow's filter for resizing, antialiased (but for 'nearest')."
    )
    channels: Literal["rgb", "l"] | None = Field(
        default=None, description="Colour or grey. null: by the number of channels that the network takes."
    )
    samples: int = Field(
        default=1024,
        ge=1,
        le=MAX_SAMPLES,
        description="Pictures to decode at most; of a larger dataset these are taken evenly over its order.",
    )

    @model_validator(mode="after")
    def _the_crop_fits(self) -> Preprocess:
        if self.resize is not None and self.crop is not None and not _covers(self.resize, pair(self.crop)):
            raise ValueError(f"expected a crop within the resized picture, got crop {self.crop} of {self.resize}")
        return self


def pair(size: Size) -> tuple[int, int]:
    """Return (height, width).

    >>> pair(224)
    (224, 224)
    """
    return size if isinstance(size, tuple) else (size, size)


def resolve(wanted: Preprocess | None, inputs: Sequence[tuple[str, Sequence[int | None]]]) -> Preprocess:
    """Return the block with every field filled in, from what the network takes.

    Args:
        wanted: What the recipe says; None: nothing.
        inputs: Dtype (as "float32") and shape of each input of the network; None: any size.

    Raises:
        RecipeError: The network takes no pictures, or others than the block makes; it says what to give.

    >>> resolve(None, [("float32", (None, 3, 32, 32))]).crop
    (32, 32)
    """
    wanted = wanted or Preprocess()
    if len(inputs) != 1 or len(inputs[0][1]) != 4 or "float" not in inputs[0][0]:
        raise RecipeError(
            "The data are pictures, but the network does not take one floating-point input of shape "
            "(batch, channels, height, width).",
            expected="one input of shape (batch, 3 or 1, height, width)",
            received=[{"dtype": dtype, "shape": list(shape)} for dtype, shape in inputs[:8]],
            advice="Send the inputs as arrays instead: numpy.savez(path, x=..., y=...).",
        )
    _, depth, *sides = inputs[0][1]
    channels = wanted.channels or ("l" if depth == 1 else "rgb")
    count = 1 if channels == "l" else 3
    if depth not in (None, count):
        raise _mismatch(
            "channels", f"the network takes {depth} channels; {channels!r} gives {count}", _channels_advice(depth)
        )
    crop = _crop(wanted, sides)
    resize = wanted.resize or max(crop)
    if not _covers(resize, crop):
        give = f'Give "resize" of at least {max(crop)}, or leave it out.'
        raise _mismatch("resize", f"a picture resized to {resize} is smaller than the crop {list(crop)}", give)
    filled: dict[str, object] = {"resize": resize, "crop": crop, "channels": channels}
    for name in ("mean", "std"):
        values: tuple[float, ...] = getattr(wanted, name)
        if len(values) not in (1, count):
            raise _mismatch(name, f"{len(values)} numbers for {count} channels", f"Give 1 or {count} numbers.")
        filled[name] = values if len(values) == count else values * count
    return wanted.model_copy(update=filled)


def _crop(wanted: Preprocess, sides: Sequence[int | None]) -> tuple[int, int]:
    if wanted.crop is None:
        height, width = sides
        if height is None or width is None:
            raise _mismatch(
                "crop", f"the network takes pictures of any size ({_shown(sides)})", 'Give "crop", for example 224.'
            )
        if max(height, width) > MAX_SIDE:
            raise _mismatch("crop", f"the network takes {_shown(sides)} pixels", f"At most {MAX_SIDE} are made.")
        return height, width
    crop = pair(wanted.crop)
    if any(side not in (None, mine) for side, mine in zip(sides, crop, strict=True)):
        advice = f'Give "crop": [{_shown(sides)}], or leave it out.'
        raise _mismatch("crop", f"the network takes {_shown(sides)} pixels, not {list(crop)}", advice)
    return crop


def _shown(sides: Sequence[int | None]) -> str:
    return ", ".join("any" if side is None else str(side) for side in sides)


def _covers(resize: Size, crop: tuple[int, int]) -> bool:
    return all(have >= want for have, want in zip(pair(resize), crop, strict=True))


def _channels_advice(depth: int | None) -> str:
    if depth in (1, 3):
        return f'Give "channels": "{"l" if depth == 1 else "rgb"}", or leave it out.'
    return "Pictures have 1 or 3 channels: send the inputs as arrays, numpy.savez(path, x=..., y=...)."


def _mismatch(field: str, problem: str, advice: str) -> RecipeError:
    return RecipeError(
        f"The preprocessing does not fit the network: {field}: {problem}.",
        advice=advice,
        errors=[{"field": f"recipe.preprocess.{field}", "problem": problem}],
    )
