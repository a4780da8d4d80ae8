"""A device of its own, for machines that have none: tensors that lie elsewhere and refuse to mix with the CPU's.

Their numbers are a CPU tensor's, inside; they say that they are on the device "meta". As on a GPU, an operation on
tensors of both places is an error, but for a CPU tensor of one number; `to` is how numbers come and go, and each time
that the program has to know a number, a count or a shape that depends on numbers, it waits for the device.
"""

from collections import Counter

import torch
import torchvision  # noqa: F401  its operators
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map_only

ELSEWHERE = torch.device("meta")
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
WAITS = (
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.bincount.default, torch.ops.torchvision.nms.default),
)


class Elsewhere(torch.Tensor):
    """A tensor on the other device; `inner` is the CPU tensor that holds its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=ELSEWHERE, **layout)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        raise AssertionError(f"{function} without the device")

    def __repr__(self):
        return f"Elsewhere({self.inner})"


class Literals(TorchFunctionMode):
    """Numbers of Python's become tensors, and the other way round, by way of the CPU."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if function is torch.tensor and torch.device(options.get("device") or "cpu") == ELSEWHERE:
            options.pop("device")
            return function(*arguments, **options).to(ELSEWHERE)
        if function is torch.Tensor.tolist and isinstance(arguments[0], Elsewhere):
            return arguments[0].to("cpu").tolist()
        return function(*arguments, **options)


class Device(TorchDispatchMode):
    """Runs operations on tensors that lie elsewhere, and counts those that the program waits for in `waits`."""

    def __init__(self):
        super().__init__()
        self.waits = Counter[str]()

    def __enter__(self):
        self._literals = Literals()
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        here = tree_any(lambda x: type(x) is not Elsewhere and isinstance(x, torch.Tensor) and x.dim() > 0, arguments)
        there = tree_any(lambda x: isinstance(x, Elsewhere), (arguments, options))
        goal = options.get("device")
        goes = goal is not None and torch.device(goal).type == ELSEWHERE.type
        if there and here and function not in COPIES:
            raise RuntimeError(f"{function} mixes tensors of the two devices")
        if self._is_waited_for(function, arguments, options, there, here):
            self.waits[str(function)] += 1
        inside = tree_map_only(Elsewhere, lambda x: x.inner, (arguments, options))
        if goes:
            inside[1]["device"] = torch.device("cpu")
        result = function(*inside[0], **inside[1])
        if function is aten.copy_.default:
            return arguments[0]
        stays = there and (goal is None or goes)
        if not (goes or stays):
            return result
        own = {id(x.inner): x for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, Elsewhere)}
        return tree_map_only(torch.Tensor, lambda x: own[id(x)] if id(x) in own else Elsewhere(x), result)

    @staticmethod
    def _is_waited_for(function, arguments, options, there, here) -> bool:
        if function in COPIES:
            away = function is aten._to_copy.default and options.get("device") is not None
            crosses = there and here or away and there != (torch.device(options["device"]).type == ELSEWHERE.type)
            return crosses and not options.get("non_blocking")
        if not there:
            return False
        if function is aten.repeat_interleave.Tensor:
            return options.get("output_size") is None
        masked = function in (aten.index.Tensor, aten.index_put_.default) and any(
            i is not None and i.dtype == torch.bool for i in arguments[1]
        )
        if function is aten.index_put_.default and arguments[2].numel() == 1 and len(arguments[1]) == 1:
            return False  # one number where a mask says so: nothing is counted
        if masked:
            return True
        return function in WAITS
