"""The same net in PyTorch, to be compared with: layers of the drawing as PyTorch's functions, in float32 without
TF32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from architectures.drawing import Drawn
from architectures.registry import NETS as PUBLISHED
from gpu_check import seeded


class TorchNet:
    """`forward` takes and returns arrays of numpy, as featd's engine does."""

    def __init__(self, key: str, device: str) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        drawing = PUBLISHED[key].draw()
        self._device, self._data, self._blob = device, drawing.data, seeded.NETS[key]
        last = max(at for at, one in enumerate(drawing.layers) if self._blob in one.tops)
        self._layers = drawing.layers[: last + 1]
        self._params = {
            name: [torch.from_numpy(array).to(device) for array in arrays]
            for name, arrays in seeded.weights_of(key).items()
        }

    @torch.inference_mode()
    def forward(self, batch: seeded.Array) -> seeded.Array:
        blobs = {self._data: torch.from_numpy(batch).to(self._device)}
        for one in self._layers:
            made = self._run(one, [blobs[bottom] for bottom in one.bottoms])
            blobs.update(dict.fromkeys(one.tops, made))
        return blobs[self._blob].flatten(1).cpu().numpy()  # type: ignore[no-any-return]

    def _run(self, one: Drawn, bottoms: list[Any]) -> Any:
        params, say, (x, *_) = self._params.get(one.name, []), one.settings, bottoms
        match one.kind:
            case "Convolution":
                bias = params[1] if len(params) > 1 else None
                more = {name: say.get(other, least) for name, other, least in _CONVOLUTION}
                return F.conv2d(x, params[0], bias, **more)
            case "InnerProduct":
                return F.linear(x.flatten(1), params[0].flatten(1), params[1] if len(params) > 1 else None)
            case "Pooling":
                return self._pool(x, say)
            case "ReLU":
                return F.relu(x)
            case "LRN":
                return F.local_response_norm(x, say["local_size"], say["alpha"], say["beta"])
            case "BatchNorm":
                factor = 1 / params[2]
                return F.batch_norm(x, params[0] * factor, params[1] * factor, eps=say.get("eps", 1e-5))
            case "Scale":
                scale, *bias = (param.reshape(1, -1, 1, 1) for param in params)
                return x * scale + bias[0] if bias else x * scale
            case "Eltwise":
                return torch.stack(bottoms).amax(0) if say.get("operation") == "MAX" else sum(bottoms[1:], x)
            case "Concat":
                return torch.cat(bottoms, 1)
            case "Dropout":
                return x
        raise ValueError(f"{one.name}: no {one.kind} here")

    @staticmethod
    def _pool(x: Any, say: dict[str, Any]) -> Any:
        if say.get("global_pooling"):
            return x.mean((2, 3), keepdim=True) if say["pool"] == "AVE" else x.amax((2, 3), keepdim=True)
        how = F.avg_pool2d if say["pool"] == "AVE" else F.max_pool2d
        return how(x, say["kernel_size"], say.get("stride", 1), say.get("pad", 0), ceil_mode=True)


_CONVOLUTION = (
    ("stride", "stride", 1), ("padding", "pad", 0), ("dilation", "dilation", 1), ("groups", "group", 1),
)  # fmt: skip
