"""What a checkpoint holds, bit for bit: tensors as safetensors, the rest as JSON, an optimiser as both; no pickle."""

import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

# Those that safetensors both writes and reads back.
DTYPES = frozenset(
    getattr(torch, name)
    for name in """float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz complex64
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64""".split()
)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Write tensors as safetensors, wherever they are and whatever they share; safetensors.torch.load reads them.

    Args:
        tensors: by name.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: one of them is not dense, has no data, or is of a dtype that safetensors does not know.
    """
    held: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise ValueError("a tensor is called __metadata__, which safetensors keeps for itself; rename it")
        kind = f"{tensor.layout} {tensor.device.type}".removeprefix("torch.")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            raise ValueError(f"the tensor {name} is {tensor.dtype}, {kind}, which safetensors cannot keep; convert it")
        # A conjugate or a negative may be a mark on the tensor only, and safetensors writes what lies in memory.
        whole = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
        if whole.untyped_storage().data_ptr() in storages:
            whole = whole.clone()
        storages.add(whole.untyped_storage().data_ptr())
        held[name] = whole
    return safetensors.torch.save(held)


def to_json(value: Any, where: str = "snapshot") -> Any:
    """Put into JSON's own types what JSON lacks: {"$float": "nan"} for a float that is not finite, {"$tuple": [...]}.

    Args:
        value: None, bool, int, float, str, list, tuple, and mappings whose keys are strings that start with no "$".
        where: how an error calls it.

    Returns:
        What json.dumps takes, and ``from_json`` turns back.

    Raises:
        ValueError: it is, or holds, anything else.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        case tuple() | list():
            items = [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        case Mapping():
            for key in value:
                if not isinstance(key, str) or key.startswith("$"):
                    raise ValueError(f"{where} has the key {key!r}; use strings that do not start with $")
            return {key: to_json(item, f"{where}.{key}") for key, item in value.items()}
    raise ValueError(
        f"{where} is a {type(value).__name__}, which JSON does not hold; convert it, or pass it as a tensor"
    )


def dumps(value: Any) -> bytes:
    """Write a value of ``to_json``'s kinds; floats keep every bit, and not-a-numbers become the one NaN."""
    return json.dumps(to_json(value), allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes) -> Any:
    """Read what ``dumps`` wrote; ValueError or RecursionError if that is not JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return from_json(json.loads(data, parse_constant=refuse))


def from_json(value: Any) -> Any:
    """Turn back what ``to_json`` made."""
    match value:
        case {"$float": str(name)}:
            return float(name)
        case {"$tuple": list(items)}:
            return tuple(from_json(item) for item in items)
        case dict():
            return {key: from_json(item) for key, item in value.items()}
        case list():
            return [from_json(item) for item in value]
    return value


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take an optimiser's state apart; the tensors are the optimiser's own, not copies.

    Args:
        optimizer: AdamW, schedule-free AdamW, or another that keeps tensors and plain values by parameter.

    Returns:
        The tensors by name, and the rest, which JSON holds.
    """
    held = optimizer.state_dict()
    rows = {f"state.{i}": row for i, row in held["state"].items()}
    rows |= {f"group.{i}": row for i, row in enumerate(held["param_groups"])}
    tensors = {f"{at}.{key}": x for at, row in rows.items() for key, x in row.items() if isinstance(x, Tensor)}
    rest = {at: {key: x for key, x in row.items() if not isinstance(x, Tensor)} for at, row in rows.items()}
    return tensors, {"class": type(optimizer).__name__, "rows": rest}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put back, bit for bit, what ``optimizer_tensors`` took.

    Args:
        optimizer: one of the same class over parameters of the same order; their values are not touched.
        tensors: by name; they are copied, each to where the optimiser wants it.
        rest: the other half.

    Raises:
        ValueError: the optimiser is of another class, or over another number of parameters.
    """
    rows = {at: dict(row) for at, row in rest["rows"].items()}
    groups = [row for at, row in rows.items() if at.startswith("group.")]
    theirs, ours = ([len(group["params"]) for group in side] for side in (groups, optimizer.param_groups))
    if (rest["class"], theirs) != (type(optimizer).__name__, ours):
        raise ValueError(
            f"the checkpoint holds {rest['class']} over {theirs} parameters, which is not this "
            f"{type(optimizer).__name__} over {ours}; resume with the configuration of the checkpoint"
        )
    for name, tensor in tensors.items():
        kind, index, key = name.split(".", 2)
        now = optimizer.param_groups[int(index)].get(key) if kind == "group" else None
        rows[f"{kind}.{index}"][key] = tensor.to(now.device) if isinstance(now, Tensor) else tensor
    state = {int(at.removeprefix("state.")): row for at, row in rows.items() if at.startswith("state.")}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, row in state.items():
        now = optimizer.state[parameters[number]]
        for key, saved in row.items():
            # load_state_dict casts to the parameter's dtype, and keeps the very tensor where that changes nothing.
            if isinstance(saved, Tensor):
                now[key] = saved.to(now[key].device, copy=True)
