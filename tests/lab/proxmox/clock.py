"""Simulated time: runs ``speed`` times as fast as the real one and can be moved forward."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
import typing as t


class Timer:
    """What is called at a moment of simulated time unless it is cancelled before."""

    def __init__(self, due: float, act: t.Callable[[], None]) -> None:
        self.due = due
        self.act = act
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Simulated seconds since the epoch, and timers in them."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._origin = time.time()
        self._began = time.monotonic()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._handle: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._origin + (time.monotonic() - self._began) * self.speed

    def call_later(self, seconds: float, act: t.Callable[[], None]) -> Timer:
        timer = Timer(self.now() + seconds, act)
        heapq.heappush(self._timers, (timer.due, next(self._numbers), timer))
        self._arm()
        return timer

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: None if done.done() else done.set_result(None))
        try:
            await done
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Go forward, stopping at every timer on the way, so that what waits goes on at its own moment."""
        target = self.now() + seconds
        while (due := self._next()) is not None and due <= target:
            self._jump(due)
            self._fire()
            await settle()
        self._jump(target)
        self._arm()

    def _jump(self, moment: float) -> None:
        self._origin += max(0.0, moment - self.now())

    def _next(self) -> float | None:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _fire(self) -> None:
        now = self.now()
        while (due := self._next()) is not None and due <= now:
            heapq.heappop(self._timers)[2].act()

    def _arm(self) -> None:
        if self._handle:
            self._handle.cancel()
            self._handle = None
        if (due := self._next()) is not None:
            delay = max(0.0, (due - self.now()) / self.speed)
            self._handle = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._handle = None
        self._fire()
        self._arm()


async def settle() -> None:
    """Let everything that can run do so: a task that was woken passes a lock on, whose holder then sleeps."""
    for _ in range(8):
        await asyncio.sleep(0)
