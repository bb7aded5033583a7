"""Fine-tune image classifiers from YAML recipes, and load them with `ftcli.load`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.version import __version__

if TYPE_CHECKING:
    from ftcli.evaluation.classifier import Classifier

__all__ = ["__version__", "load"]

# A program that uses the library without configuring logging shows none of its messages.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def load(path: str | Path, device: str = "auto") -> Classifier:
    """Return the classifier of a checkpoint written by `ftcli train`. No other file is needed.

    >>> import ftcli
    >>> from pathlib import Path
    >>> classifier = ftcli.load("runs/photos/best_loss.pt", device="cpu")
    >>> classifier.classes
    ('china', 'flower')
    >>> for prediction in classifier.predict(sorted(Path("photos").glob("*.jpg"))):
    ...     print(prediction.path, prediction.classes[0].name)
    photos/temple.jpg china
    photos/tulip.jpg flower

    `model` is the torch module, in eval mode, on `device`: auto, cpu, cuda, cuda:N or mps. It can be called directly,
    with batches of any size:

    >>> image = classifier.preprocess(Path("photos/tulip.jpg")).to(classifier.device)
    >>> logits = classifier.model(classifier.normalize(image[None]))
    >>> classifier.classes[logits.argmax()]
    'flower'

    Raises CheckpointError if the file is missing, corrupt, unsafe or not a checkpoint, and RecipeError if the device
    does not exist; `predict` and `preprocess` raise CorruptImageError. All are subclasses of `ftcli.errors.FtcliError`.
    """
    from ftcli.evaluation.classifier import load_classifier  # imports torch, which is slow
    from ftcli.runtime import choose_device

    return load_classifier(Path(path), choose_device(device)).classifier
