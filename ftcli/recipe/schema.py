"""What a recipe may say. Every default of ftcli stands here, once; the text under a field is its description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator


class Part(BaseModel):
    """A mapping of a recipe: strict types, no unknown keys, never changed once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _tuple_of_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_tuple_of_list)]
Range = Annotated[tuple[float, float], BeforeValidator(_tuple_of_list)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(_tuple_of_list)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("give the smaller number first, both above 0")
    return value


# --- augmentation --------------------------------------------------------------------------------------------------


class RandomResizedCrop(Part):
    """A random part of the image, of random area and shape, resized to the network's input."""

    name: Literal["random_resized_crop"]
    scale: Range = (0.08, 1.0)
    """The share of the image's area that is kept, from and to."""
    ratio: Range = (0.75, 4 / 3)
    """Width over height of the part, from and to."""

    _ordered = field_validator("scale", "ratio")(_ordered)

    @field_validator("scale")
    @classmethod
    def _at_most_whole(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a part is at most 1, the whole image")
        return value


class RandomHorizontalFlip(Part):
    """Left and right change places."""

    name: Literal["random_horizontal_flip"]
    p: Probability = 0.5
    """How probable the flip is."""


class RandomVerticalFlip(Part):
    """Top and bottom change places."""

    name: Literal["random_vertical_flip"]
    p: Probability = 0.5
    """How probable the flip is."""


class RandomRotation(Part):
    """A turn about the centre; what comes in at the corners is black."""

    name: Literal["random_rotation"]
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """The largest turn to either side."""


class ColorJitter(Part):
    """Random brightness, contrast, saturation and hue."""

    name: Literal["color_jitter"]
    brightness: NotNegative = 0.2
    """The factor is drawn from 1 - x to 1 + x."""
    contrast: NotNegative = 0.2
    """The factor is drawn from 1 - x to 1 + x."""
    saturation: NotNegative = 0.2
    """The factor is drawn from 1 - x to 1 + x."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The shift is drawn from -x to x of the colour circle."""


class RandAugment(Part):
    """A few random operations of one strength (Cubuk et al., arXiv 1909.13719)."""

    name: Literal["rand_augment"]
    num_ops: Count = 2
    """How many operations an image goes through."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """How strong they are, 0 to 30."""


class RandomErasing(Part):
    """A random rectangle is blackened (Zhong et al., arXiv 1708.04896)."""

    name: Literal["random_erasing"]
    p: Probability = 0.25
    """How probable the rectangle is."""
    scale: Range = (0.02, 0.33)
    """The share of the area that it takes, from and to."""

    _ordered = field_validator("scale")(_ordered)


Transform = Annotated[
    Annotated[
        RandomResizedCrop
        | RandomHorizontalFlip
        | RandomVerticalFlip
        | RandomRotation
        | ColorJitter
        | RandAugment
        | RandomErasing,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]
Transforms = Annotated[tuple[Transform, ...], BeforeValidator(_tuple_of_list)]
Preset = Literal["none", "flips", "light", "standard", "strong"]


def _kind_of_augment(value: Any) -> str:
    return "preset" if isinstance(value, str) else "list"


# --- data ----------------------------------------------------------------------------------------------------------


class Normalization(Part):
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""

    mean: Triple
    """Of red, green and blue."""
    std: Triple
    """Of red, green and blue."""

    @field_validator("std")
    @classmethod
    def _above_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("each must be above 0")
        return value


def _kind_of_normalize(value: Any) -> str:
    return "word" if isinstance(value, str) else "numbers"


class Data(Part):
    """The images: where they are, how they are split, and how they reach the network."""

    root: Text
    """A folder with train/<class>/ and test/<class>/ (and val/<class>/), or a folder of classes. Relative to the
    current folder."""
    fetch: Literal["solar-cells"] | None = None
    """A known data set, made at root when root is missing."""
    val: Share = 0.1
    """The share of the training images that is drawn for validation, class by class. A val/ folder is used instead
    where there is one."""
    test: Share = 0.2
    """The share that is drawn for the test where root is a folder of classes. Otherwise the test/ folder is used."""
    classes: Texts | None = None
    """The names of the classes in the order of the network's outputs. null: the folders' names, in natural order."""
    image_size: Count | None = None
    """Height and width of what the network sees, in pixels. null: what the weights were trained with."""
    resize: Literal["shorter", "squash", "pad"] = "shorter"
    """How an image becomes square without augmentation: its shorter side is resized and the centre cut out, both
    sides are resized, or its longer side is resized and the rest is filled with black."""
    resize_size: Count | None = None
    """The side in pixels that an image is resized to before the centre is cut out. null: in the weights' own
    proportion to image_size with shorter, image_size itself with squash."""
    normalize: Annotated[
        Annotated[Literal["weights", "data"], Tag("word")] | Annotated[Normalization, Tag("numbers")],
        Discriminator(_kind_of_normalize),
    ] = "weights"
    """Mean and std that pixels are normalised with: those of the weights, those of the training images, or numbers."""
    augment: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[Transforms, Tag("list")], Discriminator(_kind_of_augment)
    ] = "standard"
    """What happens to a training image at random: a preset, or a list of transforms by name."""
    batch_size: Count = 32
    """Images in a step."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that load images. null: as many as there are cores, at most 8; 0: the main process loads them."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What a broken image does: stop the run, or be left out and counted."""

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if len(value) < 2:
                raise ValueError("a classifier needs at least 2 classes")
            twice = sorted({name for name in value if value.count(name) > 1})
            if twice:
                raise ValueError(f"{twice[0]!r} stands twice")
        return value

    @model_validator(mode="after")
    def _sizes_agree(self) -> Data:
        if self.resize_size is not None:
            if self.resize == "pad":
                raise ValueError("resize_size does nothing with resize: pad; leave it out")
            if self.image_size is None:
                raise ValueError("resize_size needs image_size beside it")
            if self.resize_size < self.image_size:
                raise ValueError(f"resize_size {self.resize_size} is smaller than image_size {self.image_size}")
        return self


# --- the network ---------------------------------------------------------------------------------------------------


class Backbone(Part):
    """The network that the head is put on."""

    name: Text
    """A classifier of torchvision, such as resnet18, or of timm, such as timm/efficientnet_lite0."""
    weights: Text = "default"
    """default; none; a name such as IMAGENET1K_V1; a .pt, .pth or .safetensors file; or package:module/path, a file
    inside an installed Python package."""
    match: Literal["name", "position"] = "name"
    """How the tensors of a file find their places: by name, or in order after every shape was found equal."""


class Head(Part):
    """What takes the place of the backbone's last layer."""

    hidden: Annotated[tuple[Count, ...], BeforeValidator(_tuple_of_list)] = ()
    """Units of each hidden layer; [] is a single linear layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """What follows each hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of values dropped before the last layer in training."""
    init: Literal["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"] = "default"
    """How its weights begin. Biases begin at 0, except with default, which is PyTorch's own for both."""


# --- stages --------------------------------------------------------------------------------------------------------


class Through(Part):
    """Everything up to a module, in the order in which an image passes through."""

    through: Text
    """The last module that is frozen."""


class Sgd(Part):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: Positive
    """The learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How much of the last step's direction is kept."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    weight_decay: NotNegative = 0.0
    """The L2 penalty."""
    decay_norm_and_bias: bool = True
    """Whether weight decay reaches norm layers and biases."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class _Adaptive(Part):
    lr: Positive
    """The learning rate."""
    betas: Range = (0.9, 0.999)
    """How much of the running means of the gradient and of its square is kept."""
    weight_decay: NotNegative = 0.0
    """The L2 penalty with adam, decoupled from the gradient with adamw."""
    decay_norm_and_bias: bool = True
    """Whether weight decay reaches norm layers and biases."""

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each must be at least 0 and below 1")
        return value


class Adam(_Adaptive):
    """Adam (Kingma and Ba, arXiv 1412.6980)."""

    name: Literal["adam"]


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    name: Literal["adamw"]


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class Constant(Part):
    """The learning rate stays."""

    name: Literal["constant"]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the stage's steps over which the rate rises from 0."""


class StepDecay(Part):
    """The learning rate is multiplied by gamma every few epochs."""

    name: Literal["step"]
    every: Count
    """Epochs between two multiplications."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The factor."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the stage's steps over which the rate rises from 0."""


class Cosine(Part):
    """The learning rate falls to 0 along half a cosine (Loshchilov and Hutter, arXiv 1608.03983)."""

    name: Literal["cosine"]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the stage's steps over which the rate rises from 0."""


class OneCycle(Part):
    """The learning rate rises from lr / 25 to lr and falls to lr / 250,000, both along half a cosine
    (Smith and Topin, arXiv 1708.07120)."""

    name: Literal["one_cycle"]
    warmup: Share = 0.3
    """The share of the stage's steps over which the rate rises."""


Schedule = Annotated[
    Annotated[Constant | StepDecay | Cosine | OneCycle, Field(discriminator="name")], BeforeValidator(_named)
]


class EarlyStopping(Part):
    """End a stage whose validation loss no longer falls."""

    patience: Count
    """Epochs without a new best after which the stage ends."""
    min_delta: NotNegative = 0.0
    """How much lower a validation loss must be to count as a new best."""


def _kind_of_freeze(value: Any) -> str:
    if isinstance(value, str):
        return "word"
    return "mapping" if isinstance(value, (dict, Through)) else "list"


class Stage(Part):
    """One round of training, from the best checkpoint of the stage before it."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """What --stage calls it."""
    freeze: Annotated[
        Annotated[Literal["backbone", "none"], Tag("word")]
        | Annotated[Texts, Tag("list")]
        | Annotated[Through, Tag("mapping")],
        Discriminator(_kind_of_freeze),
    ]
    """What must not move: backbone, none, a list of patterns (module names or globs; each takes in all below it), or
    {through: module}."""
    batch_norm: Literal["train", "frozen"] = "train"
    """Whether BatchNorm layers that are not frozen take their statistics from each batch and update them, or keep
    and use the statistics they have."""
    epochs: Count
    """Passes over the training images."""
    optimizer: Optimizer
    """How parameters move."""
    schedule: Schedule = Constant(name="constant")
    """How the learning rate changes from step to step."""
    lr_mult: dict[Text, Positive] = {}
    """Pattern -> multiple of the learning rate; the last pattern that matches holds."""
    clip_grad_norm: Positive | None = None
    """The largest norm of the gradient; a larger one is scaled down."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the target that is spread over all classes in training. The validation loss has none."""
    early_stopping: EarlyStopping | None = None
    """When to end before epochs are over."""


class Recipe(Part):
    """A recipe: which images, which network, and the stages of its training."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """What the run is called; its folder is runs/<name>."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random follows from it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the forward pass: auto is bfloat16 on a GPU that has it, else float32."""
    data: Data
    """The images."""
    backbone: Backbone
    """The network."""
    head: Head = Head()
    """The layer or layers that are trained anew."""
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_tuple_of_list), Field(min_length=1)]
    """What is trained, in order."""

    @field_validator("stages")
    @classmethod
    def _names_differ(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two stages are named {twice[0]!r}")
        return value
