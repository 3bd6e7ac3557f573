"""Testing an application without servers and without waiting: ``with memory(bus) as events: …``.

Handlers run in the calling thread when ``drain`` is called, in the order in which a worker could have run
them; retries come due by moving a virtual clock, so that a policy with hours of back-off takes no time.
"""

from eventdriven_sync.testing.memory import MemoryRun, VirtualClock, memory

__all__ = ["MemoryRun", "VirtualClock", "memory"]
