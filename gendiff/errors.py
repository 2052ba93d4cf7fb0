"""Errors a caller may want to tell apart; each is also the built-in error it resembles."""

from __future__ import annotations


class GendiffError(Exception):
    """Base of the errors of this module."""


class InvalidInputError(GendiffError, ValueError):
    """An argument or a file cannot be used; the message names it, what it is, and what is allowed."""


class WeightsNotFoundError(GendiffError, OSError):
    """Weights of a feature network are not on this machine; the message says where to put which file."""


class WeightsCorruptError(GendiffError, ValueError):
    """A weight file is not the one its name promises; expected and found sha256 are in the message."""


class UnsafeFileError(GendiffError, ValueError):
    """A file could run code when it is read, a pickle for one; it was not read."""


class NotFiniteError(GendiffError, FloatingPointError, RuntimeError):
    """A network's output stopped being finite; the message says where, and in which precision."""


class MetricWarning(UserWarning):
    """A number was computed, under conditions that make it hard to trust."""
