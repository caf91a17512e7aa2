"""What passes raise: the graph is not what they require, or they broke what they promise."""

from __future__ import annotations


class PassError(Exception):
    """A pass cannot do its work; the message names the node and the reason."""


class PreconditionError(PassError):
    """The graph or the arguments are not what the pass requires."""


class PostconditionError(PassError):
    """The pass broke what it ensures: a defect of the pass, never of the input."""
