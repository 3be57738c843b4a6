"""Iterators that run in threads of their own, so that reading, the network and writing overlap."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar('T')

_POLL = 0.1  # seconds after which a waiting thread looks whether it should end


class Stopped(Exception):
    """An iterator was told to end before its end."""


class Ahead(Iterator[T], Generic[T]):
    """Takes from an iterator, in a thread, before it is asked to.

    Args:
        items: where from; what it raises is raised here, in its turn.
        most: items that wait to be asked for, at most; one more may be in the making.
        stopped: once it is true, asking raises ``Stopped``.
    """

    def __init__(self, items: Iterable[T], most: int, stopped: Callable[[], bool]) -> None:
        self._items, self._stopped = items, stopped
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        while not self._stopped():
            with contextlib.suppress(queue.Empty):
                item, error = self._made.get(timeout=_POLL)
                if error is not None:
                    raise error
                return item  # type: ignore[return-value]
        raise Stopped

    def join(self) -> None:
        """Wait until the thread has ended; one that was stopped still makes the item that it is at."""
        self._thread.join()

    def _run(self) -> None:
        try:
            # not a loop, whose variable would keep one item alive while the next one is made
            all(map(self._put, self._items))
            self._hand_over((None, StopIteration()))
        except BaseException as error:
            self._hand_over((None, error))

    def _put(self, item: T) -> bool:
        return self._hand_over((item, None))

    def _hand_over(self, made: tuple[T | None, BaseException | None]) -> bool:
        """Whether it found a place before all was stopped."""
        while not self._stopped():
            with contextlib.suppress(queue.Full):
                self._made.put(made, timeout=_POLL)
                return True
        return False
