"""Answers that there are none of are refused before anyone is asked."""

import pytest
from torch import nn

from benchmarks.rig.degraded import degraded
from dfml.teachers import ModuleTeacher


@pytest.mark.parametrize(("how", "said"), [("topk", "topk:K"), ("round:9", "round:1 to"), ("useless:all", "useless:N")])
def test_what_there_is_not_is_refused_and_told(how: str, said: str) -> None:
    teacher = ModuleTeacher(nn.Flatten(), ways=12, input_shape=(3, 2, 2))
    with pytest.raises(ValueError, match=said):
        degraded([teacher], how)
