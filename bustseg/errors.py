"""Errors that a user can mend: the command line prints their message as one line and exits with code 2."""


class UserError(Exception):
    """Input that cannot be used. The message says what is wrong and what to do, in one line."""


class DataError(UserError):
    """A data folder, image, mask or split that training on it would be wrong."""


class WeightsError(UserError):
    """Pretrained weights that cannot be had."""


class TrainingError(UserError):
    """A training that cannot go on, such as one whose loss is no number."""


class TrackingError(UserError):
    """An MLflow store that cannot be used."""


class SweepError(UserError):
    """A sweep whose file, study or storage cannot be used."""
