"""Plans without a compiler."""

from typing import Any

from mask_rcnn_jax.planning.compiling import Memory, Plan
from mask_rcnn_jax.planning.devices import target


def a_plan(device: str = "v5e:2x2", *, batch: int = 8, needed: float | None = None, **others: Any) -> Plan:
    """A training step on four devices that needs so many bytes on each; None for one that was refused for no reason."""
    memory = None if needed is None else Memory(inputs=needed / 4, outputs=0.0, temporaries=needed / 4 * 3, code=0.0)
    given: dict[str, Any] = {
        "target": target(device),
        "what": "train",
        "batch": batch,
        "size": (832, 1344),
        "devices": 4,
        "parts": 1,
        "remat": (),
        "fixed": 0.0,
        "traced_s": 1.0,
        "compiled_s": 2.0,
        "compiled_cpu_s": 3.0,
        "memory": memory,
        "needed": needed,
    }
    return Plan(**given | others)
