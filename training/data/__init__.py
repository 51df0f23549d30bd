"""The data of training: CIFAR-10 (cifar10), captions of its pictures (captions), random changes to them (augment), and
the English words that a text tower is taught (words). This is light to import."""

from training.data.cifar10 import CLASSES, MissingDataError, Pictures, load_cifar10, term_of

__all__ = ["CLASSES", "MissingDataError", "Pictures", "load_cifar10", "term_of"]
