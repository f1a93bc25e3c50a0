"""What can go wrong, each with what to write instead in its message."""


class NutfreeError(Exception):
    """Base of every exception raised on purpose by nutfree."""


class UnknownKernel(NutfreeError, LookupError):
    """No kernel or family has this name; the message suggests the nearest."""


class InvalidOption(NutfreeError, ValueError):
    """A kernel option is misspelt, of the wrong type or out of its range."""


class MissingCapability(NutfreeError):
    """A kernel needs a part that this posterior's `Target` does not have."""


class UnsupportedModel(NutfreeError):
    """The model has a site that no kernel of this library can sample."""


class InvalidData(NutfreeError, ValueError):
    """The data are not finite, or their shapes disagree with the model."""


class NoFiniteStart(NutfreeError, RuntimeError):
    """No starting point with a finite log density was found."""


class CheckpointMismatch(NutfreeError, ValueError):
    """A checkpoint is of another run than the one that is to go on from it."""
