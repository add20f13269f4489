"""From the paths in the configuration to callables, and how a callable is called."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pytest_jitguard.core.settings import Settings, WarmupCall, is_path

ACCEPTED = "package.module:callable"
CONTEXT_NAMES = ("context", "jitguard")

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL = _NAMED[:2]


class WarmupPathError(ValueError):
    """A warmup path that leads to nothing that can be called; the message names path, finding and what is accepted."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"warmup {path!r}: {found}; expected {ACCEPTED}")


@dataclass
class WarmupContext:
    """What a warmup callable gets if it asks for it.

    A callable asks with its first positional parameter without default, or with any parameter that is annotated
    `WarmupContext` or named `context` or `jitguard`. `target` is the offline target (`cuda:90`), None on a real
    device; `settings` are those of the run; `progress("batch 4 of 12")` says on the terminal how far it got.
    """

    target: str | None
    settings: Settings
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One callable of the warmup with the keyword arguments that the configuration gives it."""

    path: str
    call: Callable[..., object]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def plan_step(call: WarmupCall) -> Step:
    """Resolve a path, which imports its module; raises what `resolve` raises."""
    return Step(call.path, resolve(call.path), call.kwargs)


def resolve(path: str) -> Callable[..., object]:
    """Import the module of `package.module:callable` and walk to the callable.

    WarmupPathError means that the path is wrong. Whatever the module's own code raises while it is imported, a
    missing module of somebody else among it, is let through: then the path is right and the module is broken.
    """
    if not is_path(path):
        raise WarmupPathError(path, "not of that form")
    module_name, _, name = path.partition(":")
    found: Any = _import(module_name, path)
    walked = module_name
    for part in name.split("."):
        found = _attribute(found, part, walked, path)
        walked = f"{walked}.{part}"
    if not callable(found):
        raise WarmupPathError(path, f"{walked} is of type {type(found).__name__}, which is not callable")
    return found  # type: ignore[no-any-return]


def _import(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = "(is its folder on sys.path? pytest's setting pythonpath puts it there)"
        raise WarmupPathError(path, f"there is no module {error.name!r} {hint}") from error


def _attribute(owner: Any, name: str, walked: str, path: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, dir(owner), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise WarmupPathError(path, f"{walked} has no attribute {name!r}{hint}") from error


def call_step(step: Step, context: WarmupContext) -> None:
    """Call a step with its arguments and, if it asks for it, the context; an async callable is run to its end."""
    args, kwargs = _arguments(step, context)
    outcome = step.call(*args, **kwargs)
    if inspect.isgenerator(outcome) or inspect.isasyncgen(outcome):
        raise WarmupPathError(step.path, "it is a generator (it contains yield), so that calling it runs nothing")
    if inspect.isawaitable(outcome):
        import asyncio  # 16 ms that most sessions need not pay

        asyncio.run(_wait_for(outcome))


async def _wait_for(outcome: Awaitable[object]) -> None:
    await outcome


def _arguments(step: Step, context: WarmupContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs = dict(step.kwargs)
    try:
        signature = inspect.signature(step.call)
    except (TypeError, ValueError):
        return (), kwargs  # written in C without a signature: it gets what was configured and says itself what it lacks
    parameters = list(signature.parameters.values())
    args: tuple[Any, ...] = ()
    wanted = _context_parameter([p for p in parameters if p.name not in kwargs and p.kind in _NAMED])
    if wanted is not None and wanted is parameters[0] and wanted.kind in _POSITIONAL:
        args = (context,)
    elif wanted is not None:
        kwargs[wanted.name] = context
    _check_arguments(step, signature, args, kwargs)
    return args, kwargs


def _context_parameter(free: Sequence[inspect.Parameter]) -> inspect.Parameter | None:
    declared = (p for p in free if p.name in CONTEXT_NAMES or _is_annotated(p))
    required = (p for p in free if p.kind in _POSITIONAL and p.default is p.empty)
    return next(declared, None) or next(required, None)


def _is_annotated(parameter: inspect.Parameter) -> bool:
    # Compared as text: annotations may be strings whose names exist for type checkers only.
    annotation = parameter.annotation
    return "WarmupContext" in (annotation.__name__ if isinstance(annotation, type) else str(annotation))


def _check_arguments(step: Step, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = step.path.rpartition(":")[2]
        given = ", ".join(step.kwargs) or "none"
        raise WarmupPathError(
            step.path,
            f"{name}{signature} cannot be called, {error}: it may ask for a context object "
            f"and for arguments that its [[warmup]] table gives as kwargs (given: {given})",
        ) from error
