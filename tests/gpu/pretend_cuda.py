"""CUDA's autocast rules without CUDA: tensors that claim device "cuda" and hold no data, forward and
backward.

Autocast of the CPU casts other operations than that of CUDA, and hides errors of dtype. Here torch's own
rules for CUDA are applied to fake tensors (shapes, dtypes and devices alone), and gradients flow through the
nodes of autograd one by one, since its engine wants a driver. Registered for the whole process: use a
subprocess.
"""

import contextlib
import logging

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}
CUDA = torch.device("cuda", 0)


class Fake(FakeTensorMode):
    avoid_device_init = property(lambda self: True)


class PretendCuda(TorchDispatchMode):
    """Within it, tensors moved to "cuda" are fake, and those on the CPU stay real."""

    def __init__(self, n_true=7):
        super().__init__()
        self.fake, self.n_true = (
            Fake(allow_non_fake_inputs=True),
            n_true,
        )  # n_true: places where a mask is true

    def __enter__(self):
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.fake.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(
            isinstance(x, FakeTensor) or x == CUDA or x == torch.device("cuda") for x in devices(leaves)
        ):
            with _disable_current_modes():
                return function(*args, **kwargs)
        if any(isinstance(x, torch.Generator) and x.device.type != "cuda" for x in leaves):
            raise RuntimeError(f"{function}: expected a generator of the device")
        found = self.number(function, args, kwargs)
        if found is None:
            with self.fake:
                found = function(*self.without_masks(function, args), **kwargs)
        return tree_map(real_on_cpu, found)

    def number(self, function, args, kwargs):
        """What stands for results that depend on data, which fake tensors do not have; None for others."""
        if function is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if function is aten.equal.default:
            return True
        if function is aten.nonzero.default:
            with self.fake:
                return torch.empty((self.n_true, args[0].ndim), dtype=torch.int64, device=args[0].device)
        return None

    def without_masks(self, function, args):
        """Boolean indices as so many numbers."""
        if function not in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            return args
        indices = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
                continue
            with self.fake:
                new = [torch.empty(self.n_true, dtype=torch.int64, device=CUDA) for _ in range(index.ndim)]
            indices += new
        return (args[0], indices, *args[2:])


def devices(leaves):
    return [x for x in leaves if isinstance(x, FakeTensor | torch.device)]


def real_on_cpu(x):
    """Results that came back to the CPU hold zeros."""
    if isinstance(x, FakeTensor) and x.device.type == "cpu":
        with _disable_current_modes():
            return torch.zeros(tuple(x.shape), dtype=x.dtype)
    return x


def patch_torch():
    """Let torch believe that there is a GPU."""
    fake_tensor.init_gpu_context = lambda device: None
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    for name, value in {
        "is_available": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "empty_cache": None,
        "synchronize": None,
        "_lazy_init": None,
        "manual_seed_all": None,
    }.items():
        setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    torch.__future__.set_overwrite_module_params_on_conversion(True)


class Accelerator:
    """What common.training asks of accelerate's, on the pretended GPU."""

    num_processes, process_index, is_main_process, scaler = 1, 0, True, None

    def __init__(self, precision):
        self.device, self.mixed_precision = CUDA, precision

    def autocast(self):
        dtype = DTYPES[self.mixed_precision]
        return torch.autocast("cuda", dtype, enabled=dtype is not None)

    def prepare(self, optimizer):
        return optimizer

    def backward(self, loss):
        assert loss.dtype == torch.float32, f"the loss is {loss.dtype}"
        walk_backward(loss)

    def clip_grad_norm_(self, parameters, norm):
        return torch.nn.utils.clip_grad_norm_(parameters, norm)

    def free_memory(self):
        pass

    def wait_for_everyone(self):
        pass

    def main_process_first(self):
        return contextlib.nullcontext()


@torch.no_grad()
def walk_backward(loss):
    """loss.backward(): the nodes of its graph in the order of need, each called once with its gradients."""
    order, seen, stack = [], set(), [(loss.grad_fn, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(before, False) for before, _ in node.next_functions if before is not None]
    gradients = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in reversed(order):
        if (given := gradients.pop(node, None)) is None:
            continue
        if type(node).__name__ == "AccumulateGrad":
            weight = node.variable
            assert given[0].dtype == weight.dtype and given[0].device == weight.device
            weight.grad = given[0].detach() if weight.grad is None else weight.grad + given[0]
            continue
        found = call(node, [given.get(i) for i in range(len(node._input_metadata))])
        for (before, i), gradient in zip(node.next_functions, found):
            if before is not None and gradient is not None:
                add(gradients.setdefault(before, {}), i, gradient, before._input_metadata[i], node)


def call(node, inputs):
    """The gradients that a node of autograd gives for those of its outputs."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        inputs = [
            torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if x is None else x
            for x, m in zip(inputs, node._input_metadata)
        ]
        found = node.apply(*inputs)
    else:
        found = node(*inputs)
    return found if isinstance(found, tuple) else (found,)


def add(slots, i, gradient, meta, node):
    if gradient.device != meta.device:
        raise RuntimeError(f"gradient of {type(node).__name__} on {gradient.device}, wanted {meta.device}")
    if tuple(gradient.shape) != tuple(meta.shape):
        gradient = gradient.sum_to_size(tuple(meta.shape))
    gradient = gradient.to(meta.dtype)
    slots[i] = slots[i] + gradient if i in slots else gradient
