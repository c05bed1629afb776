"""A device ``pretend`` with values, which the host computes. As strict as a GPU: no operator mixes the two.

For what must run on several devices where there is one. Inside `Pretending` tensors go there by ``.to``, and
are created there. (PyTorch's registration of a device in Python knows one index alone, so that the second
device of a test is the CPU; and it sees what its own thread does, so that models are loaded in that.)
"""

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only

PRETEND = "pretend:0"
aten = torch.ops.aten
# Which take tensors of two devices: what moves one, and what is given indices by the host.
_MOVES = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self):
        return False  # for whoever asks what there is to compute on


# Before a process's first backward pass, at which PyTorch counts the devices.
backend_registration._setup_privateuseone_for_python_backend("pretend", _Module(), _Hook())


class Pretended(torch.Tensor):
    """A tensor of the device around one of the host, `value`."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=PRETEND,
        )

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"Pretended({self.value})"

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), Pretended(self.value.clone()))

    def data_ptr(self):
        return self.value.data_ptr()

    def tolist(self):
        return self.value.tolist()

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
        moves = operator in _MOVES
        on_host = [one for one in tensors if not isinstance(one, Pretended)]
        if operator in _INDEXED and isinstance(args[0], Pretended):
            on_host = []
        if (
            torch.Tag.pointwise in operator.tags
        ):  # as on a GPU, a single number of the host goes with a tensor
            on_host = [one for one in on_host if one.ndim]
        if not moves and on_host and any(isinstance(one, Pretended) for one in tensors):
            raise RuntimeError(f"{operator} of tensors on {sorted({str(one.device) for one in tensors})}")
        to = kwargs.get("device")
        values, named = tree_map_only(Pretended, lambda one: one.value, (args, kwargs))
        found = operator(*values, **(named | {"device": torch.device("cpu")} if to is not None else named))
        where = torch.device(to) if to is not None else (args[0] if moves else _first(tensors)).device
        if where.type == "cpu" or operator is aten._local_scalar_dense.default:
            return found
        found = tree_map_only(torch.Tensor, Pretended, found)
        return return_and_correct_aliasing(operator, args, kwargs, found)


def _first(tensors):
    return next(one for one in tensors if isinstance(one, Pretended))


class Pretending(TorchDispatchMode):
    """Makes the device there."""

    def __enter__(self):
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` moves what it has made on the host
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(isinstance(one, Pretended) for one in tree_iter((args, kwargs)))
        if there or torch.device(kwargs.get("device") or "cpu").type == "pretend":
            return Pretended.__torch_dispatch__(operator, types, args, kwargs)
        return operator(*args, **kwargs)
