"""What jax traces, lowers and compiles in this process, as its events and its compilation cache tell."""

import threading
from typing import Any

import jax
from jax._src import (
    compilation_cache,
)  # jax's events name the function that was compiled and say nothing of the program
from jaxlib.mlir import ir

from tests.costs import Program

_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}


class Recorder:
    """Collects the programs of this process from `start` to `stop`."""

    def __init__(self) -> None:
        self._finished: list[Program] = []
        # Another thread may compile at the same time; within one, a function's stages follow each other.
        self._unfinished: dict[tuple[int, str], Program] = {}
        self._compiling: dict[int, dict[str, Any]] = {}

    def start(self) -> None:
        """Listen to jax from here on."""
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        self._get_cache_key = get_cache_key = compilation_cache.get_cache_key

        def get_and_keep(module: ir.Module, *args: Any, **kwargs: Any) -> str:
            key = get_cache_key(module, *args, **kwargs)
            self._compiling[threading.get_ident()] = {"key": key, **_contents(module)}
            return key

        compilation_cache.get_cache_key = get_and_keep

    def stop(self) -> None:
        """Leave jax as it was."""
        compilation_cache.get_cache_key = self._get_cache_key
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def drain(self) -> list[Program]:
        """Return the programs since the last call, last those that are traced or lowered and not yet compiled."""
        finished, self._finished = self._finished, []
        unfinished, self._unfinished = self._unfinished, {}
        return [*finished, *unfinished.values()]

    def _on_duration(self, event: str, seconds: float, *, fun_name: str = "", **_: Any) -> None:
        if event not in _STAGES:
            return
        stage, thread = _STAGES[event], threading.get_ident()
        name = fun_name.removeprefix("jit(").removesuffix(")")
        program = self._unfinished.pop((thread, name), Program(name))
        program = program._replace(**{stage: getattr(program, stage) + seconds})
        if stage == "compiled":
            self._finished.append(program._replace(**self._compiling.pop(thread, {})))
        else:
            self._unfinished[thread, name] = program

    def _on_event(self, event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self._compiling.setdefault(threading.get_ident(), {})["cached"] = True


def _contents(module: ir.Module) -> dict[str, int]:
    operations = backward = 0

    def visit(operation: Any) -> ir.WalkResult:
        nonlocal operations, backward
        operations += 1
        if operation.name in ("stablehlo.convolution", "stablehlo.dot_general"):
            # The first string of a location is the path of transformations, such as "jit(step)/transpose(jvp())/dot".
            backward += "transpose(" in str(operation.location).partition('"')[2].partition('"')[0]
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return {"operations": operations, "backward_products": backward}
