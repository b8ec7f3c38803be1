"""Every method by its name: a module with `train` and, where the service acquires the answers, `distil`."""

from dfml.methods import pqd

__all__ = ["METHODS", "pqd"]

METHODS = {"pqd": pqd}
