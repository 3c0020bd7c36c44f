"""Run a numbered script on a make-believe GPU: python tests/gpu/pretend_device.py SCRIPT --demo ...

Tensors say that they are on device "gpu" and hold real data on the CPU, so that figures are those of the CPU.
What CUDA refuses is refused: operations over two devices, a CPU generator for numbers on the device, numpy
arrays of device tensors, device indices into CPU tensors. What makes CUDA wait is counted, by line, within
the steps of training: reading a number, nonzero, boolean indices, copies to the CPU. Prints one JSON line at
the end.
"""

import collections
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

import torch
from torch import library
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")
COPYING = ("copy_", "_to_copy", "set_data", "_has_compatible_shallow_copy_type")
INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
WAITS = collections.Counter()  # {"_local_scalar_dense common/training.py:210": how often}


class Backend(backend_registration._DummyBackendModule):
    """What torch asks a device's module for."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        pass

    def _is_in_bad_fork(self):
        return False


backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=Backend())
GPU = torch.device("gpu:0")


class OnGPU(torch.Tensor):
    """A tensor that says it is on the device; `held` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real):
        how = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, real.shape, **how, device=GPU)

    def __init__(self, real):
        self.held = real

    def __repr__(self):
        return f"OnGPU({self.held})"

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a device tensor to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """Sends every operation of a block through `run`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def real_of(x):
    return x.held if isinstance(x, OnGPU) else x


def where():
    """The project's line that called."""
    for frame in reversed(traceback.extract_stack()):
        if (
            frame.filename.startswith(str(ROOT))
            and "/tests/" not in frame.filename
            and ".venv" not in frame.filename
        ):
            return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere"


def run(function, args, kwargs):
    """One operation under the device's rules, computed on the CPU."""
    name, leaves = function.overloadpacket.__name__, tree_leaves((args, kwargs))
    on_gpu = [x for x in leaves if isinstance(x, OnGPU)]
    on_cpu = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnGPU)]
    device = kwargs.get("device")
    to_gpu = torch.device(device).type == "gpu" if device is not None else bool(on_gpu)
    if not on_gpu and not to_gpu:
        return function(*args, **kwargs)
    check(name, function, args, leaves, on_gpu, on_cpu, to_gpu)
    count_waits(name, args, device, to_gpu)
    real_args, real_kwargs = tree_map(real_of, args), tree_map(real_of, kwargs)
    real_kwargs.pop("pin_memory", None)
    if device is not None:
        real_kwargs["device"] = "cpu"
    found = function(*real_args, **real_kwargs)
    if name == "_to_copy" and device is not None and not to_gpu:
        return found.clone() if any(found is x.held for x in on_gpu) else found
    known = {id(x.held): x for x in on_gpu} | {
        id(x): x for x in on_cpu
    }  # what is changed in place stays itself
    is_written = any(x.alias_info is not None and x.alias_info.is_write for x in function._schema.arguments)

    def wrap(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if is_written and id(x) in known else OnGPU(x)

    return tree_map(wrap, found)


def check(name, function, args, leaves, on_gpu, on_cpu, to_gpu):
    """Raise what CUDA would."""
    generators = [x for x in leaves if isinstance(x, torch.Generator)]
    if to_gpu and any(generator.device.type == "cpu" for generator in generators):
        raise RuntimeError(f"expected a device generator but found one of the CPU in {name}")
    if name == "_pin_memory" and on_gpu:
        raise RuntimeError("only CPU tensors can be pinned")
    if not (on_gpu and on_cpu) or name in COPYING:
        return
    if name in INDEXING:
        if not isinstance(args[0], OnGPU):
            raise RuntimeError(f"{name}: device indices or values for a CPU tensor")
    elif any(x.dim() for x in on_cpu):
        shapes = [(str(x.device), tuple(x.shape)) for x in (*on_gpu, *on_cpu)]
        raise RuntimeError(f"expected all tensors to be on the same device in {name}: {shapes}")
    elif function._schema.arguments[0].alias_info is not None and not isinstance(args[0], OnGPU):
        raise RuntimeError(f"{name} of a CPU tensor in place by a device tensor")


def count_waits(name, args, device, to_gpu):
    bool_index = name in INDEXING and any(
        isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
    )
    to_cpu = name == "_to_copy" and device is not None and not to_gpu
    to_cpu = to_cpu or name == "copy_" and isinstance(args[1], OnGPU) and not isinstance(args[0], OnGPU)
    if name in WAITING or bool_index or to_cpu:
        WAITS[f"{'boolean index' if bool_index else 'to the CPU' if to_cpu else name} {where()}"] += 1


def register():
    """Let torch make tensors of the device, and copy to and from it, where it asks the device itself."""
    registered = library.Library("aten", "IMPL")

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return OnGPU(
            torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype(), device="cpu")
        )

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return OnGPU(torch.empty(size, dtype=dtype or torch.get_default_dtype(), device="cpu"))

    def copy_from(source, target, non_blocking=False):
        if isinstance(source, OnGPU) and not isinstance(target, OnGPU):
            WAITS[f"to the CPU {where()}"] += 1
        real_of(target).copy_(real_of(source))
        return target

    registered.impl("empty_strided", empty_strided, "PrivateUse1")
    registered.impl("empty.memory_format", empty, "PrivateUse1")
    registered.impl("_copy_from", copy_from, "PrivateUse1")
    return registered


def patch_training(steps):
    """Put accelerators on the device, weights on the CPU when they are written; count waits within steps."""
    import safetensors.torch

    from common import training

    make, step, save, save_file = (
        training.make_accelerator,
        training.Training.step,
        torch.save,
        safetensors.torch.save_file,
    )

    def make_accelerator(precision, *more):
        accelerator = make("no" if precision == "auto" else precision, *more)
        accelerator.state.device = GPU
        type(accelerator).device = property(lambda self: GPU)
        return accelerator

    def counted(self, number, batch):
        before = WAITS.copy()
        assert all(p.device == GPU for p in self.model.parameters()), "a parameter is not on the device"
        found = step(self, number, batch)
        steps["steps"] += 1
        steps["waits"].update(WAITS - before)
        return found

    def on_cpu(content):
        return tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, content)

    training.make_accelerator, training.Training.step = make_accelerator, counted
    training.save_file = lambda state, path: save_file(on_cpu(state), path)
    torch.save = lambda content, path: save(on_cpu(content), path)


def begin():
    """Let this process believe in the device; returns {"steps", "waits"}, which its trainings count."""
    global registered  # it holds as long as it is referred to
    registered, steps = register(), {"steps": 0, "waits": collections.Counter()}
    torch.inference_mode = torch.no_grad  # inference tensors cannot be wrapped
    torch.set_num_threads(1)
    patch_training(steps)
    return steps


def main():
    steps = begin()
    from common import settings

    sys.argv = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("script", ROOT / sys.argv[0])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with PretendDevice():
        settings.run(script.main, vars(script), sys.argv[1:])
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
