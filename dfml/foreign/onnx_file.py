"""An ONNX file, run by ONNX Runtime on the CPU. Needs the extra `onnx`."""

from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from dfml.foreign.problem import BadProgram

_NOWHERE = "session.model_external_initializers_file_folder_path"


class OnnxProgram(nn.Module):
    """float32 (n, 3, h, w) -> float32 (n, ways).

    The file must hold its weights itself. A file that was exported for one image at a time is asked one at a time.
    `held_bytes` is the size of the file: what its session holds at least, outside torch's sight.
    """

    def __init__(self, content: bytes, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.held_bytes = len(content)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry(_NOWHERE, "/dev/null")  # no file beside it is ever read
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, all bare Exceptions
            raise BadProgram(f"ONNX Runtime does not take it: {str(error).splitlines()[0]}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise BadProgram("it must have one input, float images (n, 3, height, width)")
        count, *sizes = inputs[0].shape
        if any(isinstance(size, int) and size != wanted for size, wanted in zip(sizes, shape, strict=True)):
            raise BadProgram(f"it takes images {sizes}, {list(shape)} was declared")
        if isinstance(count, int) and count != 1:
            raise BadProgram(f"it takes batches of exactly {count}: export it for any number of images, or for one")
        self._one_by_one = count == 1
        self._input, self._output = inputs[0].name, outputs[0].name

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxProgram":
        return self  # a session is never changed, and safe to share between threads

    def forward(self, images: Tensor) -> Tensor:
        asked = images.detach().cpu()
        parts = torch.split(asked, 1) if self._one_by_one else [asked]
        answers = [
            torch.from_numpy(self._session.run([self._output], {self._input: part.numpy()})[0]) for part in parts
        ]
        return torch.cat(answers).float().to(images.device)
