"""How a guard gets into the workers of a Ray cluster: through the runtime environment that `ray.init` is given."""

from __future__ import annotations

import atexit
import builtins
import copy
import os
from collections.abc import Callable, Mapping
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from pytest_jitguard.patching import PatchSet, when_imported
from pytest_jitguard.processes import ray_reader
from pytest_jitguard.processes.inherit import VARIABLE, Inherited

VLLM_PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
"""What vLLM reads, separated by commas: prefixes of variables that it copies to its Ray workers besides its own."""

_OUR_PREFIX = "JITGUARD_"
_HOOK = "worker_process_setup_hook"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in drivers that `ray job submit` started: Ray merges its runtime environment, and refuses conflicts."""

_NONE: Mapping[str, str] = MappingProxyType({})


class RayEnvironmentError(ValueError):
    """A runtime environment that the guard's part cannot be merged with."""


def ray_environment(inherited: Inherited, variables: Mapping[str, str] = _NONE, *, hook: bool = True) -> dict[str, Any]:
    """Return the part of a runtime environment that makes the workers of a Ray job report.

    `variables` are further ones that workers need (cache folders of a cold run). With `hook`, workers on nodes where
    the package can be imported but has no start-up file report as well.
    """
    ours: dict[str, Any] = {"env_vars": {**variables, **inherited.variables()}}
    return {**ours, _HOOK: _by_value(ray_reader.begin_in_worker)} if hook else ours


def merged(runtime_env: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> Any:
    """Return a user's runtime environment with ours in it, of the same type; the user's own is left as it is.

    The user's variables win, and so does the user's setup hook. Raises RayEnvironmentError where the guard's own
    variable is set to something else, or where `env_vars` is no mapping.
    """
    result: Any = {} if runtime_env is None else copy.copy(runtime_env)
    theirs = result.get("env_vars") or {}
    if not isinstance(theirs, Mapping):
        raise RayEnvironmentError(f"env_vars is {theirs!r}, expected a mapping of names to texts")
    if theirs.get(VARIABLE, ours["env_vars"][VARIABLE]) != ours["env_vars"][VARIABLE]:
        raise RayEnvironmentError(
            f"its env_vars set {VARIABLE} to {theirs[VARIABLE]!r}, which is the guard's to set; leave it out"
        )
    result["env_vars"] = {**ours["env_vars"], **theirs}
    if _HOOK in ours and not result.get(_HOOK):
        result[_HOOK] = ours[_HOOK]
    return result


def _by_value(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that is pickled with its code: as if it had been typed into the main program."""
    assert isinstance(function, FunctionType)
    alone = FunctionType(function.__code__, {"__builtins__": builtins}, function.__name__)
    alone.__module__ = "__main__"
    return alone


class RayDoor:
    """Puts the guard's variables into every `ray.init` of this process while it is open. Never raises into it.

    `say` takes what could not be done. `leaving` is called before `ray.shutdown`, and before Ray's own shutdown at the
    exit of the process: the last moment to read from nodes.
    """

    def __init__(
        self,
        inherited: Inherited,
        say: Callable[[str], None],
        *,
        variables: Mapping[str, str] = _NONE,
        leaving: Callable[[], None] = lambda: None,
    ) -> None:
        self._inherited = inherited
        self._variables = variables
        self._say = say
        self._leaving = leaving
        self._patches = PatchSet()
        self._is_open = self._waits = self._is_in = False

    def open(self, ray: ModuleType | None = None) -> None:
        """Wait for Ray's import; never cause it. Also lets vLLM copy our variables to its workers.

        `ray` is given by who was told of the import just now: asked in that moment, it is not finished yet.
        """
        self._is_open = True
        self._let_vllm_copy()
        if ray is None:
            self.settle()
        else:
            self._waits = True
            self._imported(ray)

    def settle(self) -> None:
        """Ask again for the import, if Ray was half imported when last asked."""
        if self._is_open and not self._waits:
            self._waits = when_imported("ray", self._imported)

    def close(self) -> None:
        """Take everything back."""
        self._is_open = self._waits = self._is_in = False
        self._patches.undo()

    def _let_vllm_copy(self) -> None:
        before = os.environ.get(VLLM_PREFIXES)
        known = [part.strip() for part in (before or "").split(",") if part.strip()]
        if _OUR_PREFIX in known:
            return
        ours = ",".join([*known, _OUR_PREFIX])
        os.environ[VLLM_PREFIXES] = ours
        self._patches.on_undo(lambda: _restore(VLLM_PREFIXES, ours, before))

    def _imported(self, ray: ModuleType) -> None:
        # A hook on an import cannot be taken back: after the door was closed it must find nothing to do.
        if not self._is_open or self._is_in:
            return
        self._is_in = True
        self._patches.wrap(ray, "init", self._init)
        self._patches.wrap(ray, "shutdown", self._shutdown)
        atexit.register(self._leave)  # Ray has registered its own by now, which is then called after this
        self._patches.on_undo(lambda: atexit.unregister(self._leave))

    def _init(self, init: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            if not _is_initialised(_module()):
                kwargs = self._with_ours(args, kwargs)
        except Exception as error:  # noqa: BLE001 - the user's program must not notice
            self._say(f"the workers of this Ray job do not report: its runtime_env cannot carry the guard: {error}")
        return init(*args, **kwargs)

    def _with_ours(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        ours = ray_environment(self._inherited, self._variables, hook=_takes_hook(args, kwargs))
        # Ray takes the environment of the job's configuration only where no other is given.
        theirs = kwargs.get("runtime_env") or getattr(kwargs.get("job_config"), "runtime_env", None)
        return {**kwargs, "runtime_env": merged(theirs, ours)}

    def _shutdown(self, shutdown: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._leave()
        return shutdown(*args, **kwargs)

    def _leave(self) -> None:
        try:
            self._leaving()
        except Exception as error:  # noqa: BLE001 - the user's program must not notice
            self._say(f"journals could not be read before ray.shutdown(): {type(error).__name__}: {error}")


def _takes_hook(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a function can be given as setup hook: not through Ray Client, nor under `ray job submit`."""
    address = str((args[0] if args else kwargs.get("address")) or os.environ.get("RAY_ADDRESS") or "")
    return "://" not in address and _JOB not in os.environ


def _module() -> Any:
    import ray

    return ray


def _is_initialised(ray: Any) -> bool:
    try:
        return bool(ray.is_initialized())
    except Exception:  # noqa: BLE001 - a half-connected client; then nobody can tell
        return False


def _restore(name: str, ours: str, before: str | None) -> None:
    if os.environ.get(name) != ours:
        return
    if before is None:
        del os.environ[name]
    else:
        os.environ[name] = before
