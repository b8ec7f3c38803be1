"""Every method by its name: a module with `train`, and the options it takes.

Methods of `METHODS` meet teachers as black boxes, within a budget of queries: `train(teachers, config, options, *, queries,
seed, device, on_step)`. Those of `WHITE_BOX` need `WhiteBoxTeacher`s and spend no queries: the same without `queries`.
"""

from contracts.methods import FreeOptions, PqdOptions, PurerOptions
from dfml.methods import free, pqd, purer

__all__ = ["METHODS", "OPTIONS", "WHITE_BOX", "free", "pqd", "purer"]

METHODS = {"pqd": pqd}
WHITE_BOX = {"free": free, "purer": purer}
OPTIONS = {"pqd": PqdOptions, "free": FreeOptions, "purer": PurerOptions}
