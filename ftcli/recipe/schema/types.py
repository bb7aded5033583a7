"""Base class and field types of the schema."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class RecipeModel(BaseModel):
    """A mapping of a recipe: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def list_to_tuple(value: Any) -> Any:
    """Convert a list of YAML to the immutable tuple of the schema."""
    return tuple(value) if isinstance(value, list) else value


def allow_bare_name(value: Any) -> Any:
    """Convert a name without settings to a mapping with that name."""
    return {"name": value} if isinstance(value, str) else value


def check_file_name_length(value: str) -> str:
    """Raise ValueError for a name that is too long for files and folders; Linux allows 255 bytes, suffixes included."""
    if len(value.encode()) > 200:
        raise ValueError("takes more than 200 bytes, too many for a file name; shorten it")
    return value


T = TypeVar("T")

OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e6)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e6)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=100_000)]
SideLength = Annotated[int, Field(ge=1, le=4096)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
FileSafeName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100), AfterValidator(check_file_name_length)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(list_to_tuple)]
Pair = Annotated[tuple[T, T], BeforeValidator(list_to_tuple)]
Triple = Annotated[tuple[T, T, T], BeforeValidator(list_to_tuple)]
