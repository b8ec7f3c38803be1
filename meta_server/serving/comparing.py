"""Two meta-models on the same episodes."""

from pathlib import Path

from contracts.meta_models import CompareRequest, Comparison
from contracts.problems import Fault, ProblemError
from dfml.datasets import DatasetMissing, open_dataset
from dfml.evaluate import compare
from dfml.nets import Backbone


def compared(first: Backbone, second: Backbone, request: CompareRequest, data: Path | None) -> Comparison:
    """Both on the episodes of the request; `data` is the folder of data sets. Raises a 422 `ProblemError`."""
    if first.input_shape != second.input_shape:
        message = (
            f"takes images of {second.input_shape}, the first of {first.input_shape}: there are no episodes for both"
        )
        raise _refused("second", message)
    try:
        dataset = open_dataset(request.evaluation.dataset, data, side=first.input_shape[1])
    except (ValueError, DatasetMissing) as error:
        raise _refused("evaluation.dataset", str(error)) from None
    try:
        scores = compare(first, second, dataset, request.evaluation, head=request.head)
    except ValueError as error:  # the split is too small for the episodes, or its images do not fit
        raise _refused("evaluation", str(error)) from None
    return Comparison(first=scores[0], second=scores[1], difference=scores[2])


def _refused(field: str, message: str) -> ProblemError:
    return ProblemError("invalid-request", "nothing was compared", errors=[Fault(field=field, message=message)])
