"""Every method by its name: a module with `train`, and the options it takes.

Methods of `METHODS` meet teachers as black boxes, within a budget of queries: `train(teachers, config, options, *, queries,
seed, device, on_step)`. Those of `WHITE_BOX` need `WhiteBoxTeacher`s and spend no queries: the same without `queries`.
"""

from contracts.methods import BidfMkdOptions, FreeOptions, PqdOptions, PurerOptions
from dfml.methods import bidf_mkd, free, pqd, purer

__all__ = ["METHODS", "OPTIONS", "WHITE_BOX", "bidf_mkd", "free", "pqd", "purer"]

METHODS = {"pqd": pqd, "bidf-mkd": bidf_mkd}
WHITE_BOX = {"free": free, "purer": purer}
OPTIONS = {"pqd": PqdOptions, "bidf-mkd": BidfMkdOptions, "free": FreeOptions, "purer": PurerOptions}
