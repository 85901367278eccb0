"""How often XLA compiled: a steady state compiles nothing, and a metric should say so."""

from __future__ import annotations

import jax


class Counter:
    """Counts compilations of this process from its making on; `count` reads it."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_) -> None:
        del duration
        # Fired for a program fetched from the persistent cache as well: it was traced anew.
        self.count += event == "/jax/core/compile/backend_compile_duration"
