"""From what a user wrote (`cuda:90`, `h20`, a table of their own) to a GPU."""

from __future__ import annotations

import dataclasses
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_jitguard.offline.gpus import DEFAULT_GPUS, GPU, GPUS, generic_gpu

if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_GPUS: Mapping[str, GPU] = MappingProxyType({})
_ARCH_FORMS = {"cuda": re.compile(r"\d{2,3}"), "hip": re.compile(r"gfx[0-9a-f]{3,5}")}
_BACKEND_ARCH = re.compile(r"([A-Za-z_]\w*):([\w-]+)")
_FIELDS = {field.name: field for field in dataclasses.fields(GPU)}


def parse_target(text: str, extra: Mapping[str, GPU] = _NO_GPUS) -> GPU:
    """Return the GPU that `text` names: a GPU's name or `backend:arch`.

    `extra` holds the user's own GPUs, which win over the table. Raises ValueError that says what is accepted.
    """
    wanted = text.strip()
    named = extra.get(wanted) or extra.get(wanted.lower()) or GPUS.get(wanted.lower())
    return named or _by_architecture(wanted) or _refuse(text, extra)


def _by_architecture(text: str) -> GPU | None:
    match = _BACKEND_ARCH.fullmatch(text)
    if match is None:
        return None
    backend, arch = match.groups()
    form = _ARCH_FORMS.get(backend)
    if form is not None and not form.fullmatch(arch):
        return None
    default = DEFAULT_GPUS.get(f"{backend}:{arch}")
    return GPUS[default] if default else generic_gpu(backend, int(arch) if arch.isdigit() else arch)


def _refuse(text: str, extra: Mapping[str, GPU]) -> GPU:
    names = ", ".join([*sorted(extra), *sorted(GPUS)])
    targets = ", ".join(DEFAULT_GPUS)
    raise ValueError(
        f"unknown offline target {text!r}; accepted: a GPU name ({names}) "
        f"or backend:arch such as cuda:90 or hip:gfx942 (known: {targets})"
    )


def gpu_from_mapping(name: str, mapping: Mapping[str, Any]) -> GPU:
    """Return the GPU that a user's own table defines.

    `like` names the GPU (or `backend:arch`) whose figures hold where the table is silent; without it every figure
    must be given. Raises ValueError that names the key, the value and what is accepted.
    """
    values = dict(mapping)
    like = values.pop("like", None)
    if like is not None and not isinstance(like, str):
        raise ValueError(_bad_value(name, "like", like, "a GPU name or backend:arch"))
    base = {} if like is None else dataclasses.asdict(parse_target(like))
    _check_keys(name, values)
    _check_complete(name, values, base)
    for key, value in values.items():
        _check_value(name, key, value)
    return GPU(**{"source": "the user's configuration", **base, **values, "name": name})


def _check_keys(name: str, values: Mapping[str, Any]) -> None:
    accepted = [key for key in _FIELDS if key != "name"]
    for key, value in values.items():
        if key not in accepted:
            raise ValueError(
                f"offline GPU {name!r}: unknown key {key!r} (value {value!r}); accepted: like, {', '.join(accepted)}"
            )


def _check_complete(name: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    required = [key for key, field in _FIELDS.items() if field.default is dataclasses.MISSING and key != "name"]
    missing = [key for key in required if key not in values and key not in base]
    if missing:
        raise ValueError(
            f"offline GPU {name!r}: missing {', '.join(missing)}; give every figure, "
            'or like = "h100" to take the others from a known GPU'
        )


def _check_value(name: str, key: str, value: object) -> None:
    if key == "arch":
        good, accepted = isinstance(value, (int, str)) and not isinstance(value, bool), "90 or 'gfx942'"
    elif _FIELDS[key].type == "int":
        good, accepted = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number above 0"
    else:
        good, accepted = isinstance(value, str) and bool(value), "a text"
    if not good:
        raise ValueError(_bad_value(name, key, value, accepted))


def _bad_value(name: str, key: str, value: object, accepted: str) -> str:
    return f"offline GPU {name!r}: {key} = {value!r}; accepted: {accepted}"
