"""Fine-tune image classifiers from YAML recipes, and use what came of it: `ftcli.load`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftcli.evaluation.classifier import Classifier

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(path: str | Path, device: str = "auto") -> Classifier:
    """The classifier of a checkpoint that `ftcli train` wrote, ready to be used. It needs no other file.

    >>> import ftcli
    >>> from pathlib import Path
    >>> classifier = ftcli.load("runs/photos/best_loss.pt", device="cpu")
    >>> classifier.classes
    ('china', 'flower')
    >>> for prediction in classifier.predict(sorted(Path("photos").glob("*.jpg"))):
    ...     print(prediction.path, prediction.classes[0].name)
    photos/temple.jpg china
    photos/tulip.jpg flower

    `model` is the torch module, in eval mode, on `device`: auto, cpu, cuda, cuda:N or mps. By hand the same goes so,
    in batches of any size:

    >>> image = classifier.preprocess(Path("photos/tulip.jpg")).to(classifier.device)
    >>> logits = classifier.model(classifier.normalize(image[None]))
    >>> classifier.classes[logits.argmax()]
    'flower'

    Raises CheckpointError for a file that is missing, damaged, hostile or no checkpoint, RecipeError for a device that
    is not there; `predict` and `preprocess` raise CorruptImageError. All are FtcliErrors, of `ftcli.errors`.
    """
    from ftcli.evaluation.classifier import load_classifier  # here, for `import ftcli` shall not wait for torch
    from ftcli.runtime import choose_device

    return load_classifier(Path(path), choose_device(device))[0]
