"""Examples of a mixture, read ahead of training.

`Batches` reads in threads, which is enough where reading means decoding pictures (Pillow lets go of
the interpreter meanwhile). `grain_dataset` gives the same stream to Grain and its processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vrrl_jax.data.loading import allowed_bad
from vrrl_jax.data.mixture import Mixture, buckets
from vrrl_jax.data.records import PictureSource, Record


class Item(NamedTuple):
    """An example, read.

    Attributes:
      number: its number in the mixture.
      value: what `read` made of it.
    """

    number: int
    value: Any


def decode(record: Record, open_image: Callable[[PictureSource, str], Any]) -> tuple[Any, ...]:
    """The pictures of a record.

    Args:
      record: whose pictures are encoded.
      open_image: takes a picture and its name for messages: `processing.images.open_image`; or a
        function that cuts it into patches as well, so that one alone is in memory at full size.

    Returns:
      What `open_image` made of each.

    Raises:
      ValueError: naming the record, one is no picture, or too large.
      OSError: one can't be read.
    """
    name = lambda number: f"picture {number} of {record.id}"
    return tuple(open_image(source, name(i)) for i, source in enumerate(record.pictures, 1))


class Batches:
    """Batches of a mixture, read ahead in threads; close it, or use it in a `with`.

    Examples that can't be read (ValueError, OSError) are left out, and named in `skipped`. The
    order, and what is left out, are the same for any number of workers.

    Args:
      mixture: the stream, a host's own.
      read: makes an item's value of an example; called in threads.
      batch: items of a batch.
      size: of a value, in tokens or patches; None: batches in the stream's order. Else batches of
        like size are formed within windows.
      window: batches of a window, whose values are in memory together.
      workers: threads.
      ahead: examples read ahead; None: two batches, with `size` a window.
      max_bad: different examples that may be unreadable; None: as many as `loading.load` allows
        among all of the mixture.
      state: of `state()`, to go on from there with the same mixture, batch and window.

    Raises:
      ValueError: a count below 1, or a state that doesn't fit.
    """

    def __init__(
        self,
        mixture: Mixture,
        read: Callable[[Any], Any],
        *,
        batch: int,
        size: Callable[[Any], int] | None = None,
        window: int = 8,
        workers: int = 2,
        ahead: int | None = None,
        max_bad: int | None = None,
        state: Mapping[str, int] | None = None,
    ):
        self.mixture, self.read, self.size, self.batch = mixture, read, size, batch
        self.window = window if size else 1
        self.ahead = batch * max(2, self.window) if ahead is None else ahead
        if min(batch, window, workers, self.ahead) < 1:
            raise ValueError("batch, window, workers and ahead are at least 1")
        self.most = allowed_bad(mixture.firsts[-1], max_bad)
        self.skipped: dict[int, str] = {}
        self._queue: collections.deque = collections.deque()
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="loader")
        state = {"position": 0, "done": 0} if state is None else dict(state)
        fits = set(state) == {"position", "done"} and state["position"] >= 0
        if not fits or not 0 <= state["done"] < self.window:
            self.close()
            raise ValueError(f"this is no state of {self.window} batches a window: {state}")
        self._first = self._next = state["position"]  # of the window; not yet handed to a thread
        self._done, self._groups = state["done"], None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads; what they are at is waited for, what they have not begun is not."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._queue.clear()

    def state(self) -> dict[str, int]:
        """Where the stream stands after the batches handed out so far."""
        return {"position": self._first, "done": self._done}

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Item, ...]:
        """The next batch.

        Raises:
          ValueError: too many examples can't be read.
          RuntimeError: `read` failed in a way that isn't an example's fault; it is the cause. After
            either the threads have ended; `state` is that of the last batch.
        """
        if self._groups is None:
            try:
                self._groups = self._fill()
            except BaseException:
                self.close()
                raise
        made = self._groups[self._done]
        self._done += 1
        if self._done == len(self._groups):
            self._first, self._done, self._groups = self._end, 0, None
        return made

    def _fill(self) -> list[tuple[Item, ...]]:
        """The batches of the window that starts at `_first`; `_end` is where it ends."""
        items: list[Item] = []
        while len(items) < self.batch * self.window:
            item = self._take()
            items += [item] if item else []
        if self.size is None:
            return [tuple(items)]
        sizes = [self.size(item.value) for item in items]
        groups = buckets(sizes, self.batch, self.mixture.seed, 2, self._first)
        return [tuple(items[i] for i in group) for group in groups]

    def _take(self) -> Item | None:
        """The next example in order; None for one that can't be read."""
        while len(self._queue) < self.ahead:
            place = self.mixture.at(self._next)
            number = self.mixture.number(place.source, place.row)
            self._queue.append((number, self._next, self._pool.submit(self._read, number)))
            self._next += 1
        number, position, future = self._queue.popleft()
        self._end = position + 1
        try:
            return Item(number, future.result())
        except (ValueError, OSError) as error:
            self.skipped[number] = f"{self._name(number)}: {error}"
        except Exception as error:
            raise RuntimeError(f"{self._name(number)}: {type(error).__name__}: {error}") from error
        if len(self.skipped) > self.most:
            first = "\n  ".join(list(self.skipped.values())[:5])
            raise ValueError(
                f"{len(self.skipped)} examples can't be read, {self.most} may be:\n  {first}"
            )
        return None

    def _read(self, number: int) -> Any:
        return self.read(self.mixture.example(number))

    def _name(self, number: int) -> str:
        source, row = self.mixture.locate(number)
        return f"{self.mixture.sources[source][0]}, example {row}"


# --- Grain -------------------------------------------------------------------------------------


_UNREAD = "an example that can't be read"  # equal to itself in another process too


def _is_read(item: Item) -> bool:
    return not isinstance(item.value, str) or item.value != _UNREAD


@dataclasses.dataclass(frozen=True, eq=False)
class _Endless:
    """A mixture as a source of Grain: items, their value `_UNREAD` where one can't be read.

    Not None: Grain drops that within each process, and the items' order would depend on how many.
    """

    mixture: Mixture
    read: Callable[[Any], Any]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> Item:
        source, row, _ = self.mixture.at(int(position))
        number = self.mixture.number(source, row)
        try:
            return Item(number, self.read(self.mixture.example(number)))
        except (ValueError, OSError):
            return Item(number, _UNREAD)


def grain_dataset(
    mixture: Mixture,
    read: Callable[[Any], Any],
    *,
    batch: int,
    workers: int = 0,
    threads: int = 2,
    ahead: int = 16,
):
    """The stream as a `grain.IterDataset` of batches, lists of `Item`.

    Its iterator has `get_state` and `set_state`, for the same number of workers, and `close`.
    Examples that can't be read are left out silently.

    Args:
      mixture: picklable where there are workers.
      read: likewise, at the top of a module.
      batch: items of a batch.
      workers: processes; 0: threads of this one alone.
      threads: of each process.
      ahead: examples that each process reads ahead.
    """
    import grain

    if workers:
        # Grain asks for a flag of absl, which refuses to answer where no program parsed any.
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    stream = grain.MapDataset.source(_Endless(mixture, read)).to_iter_dataset(options)
    if workers:
        stream = stream.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        )
    # After the processes, whose items take turns: the order is that of one.
    return stream.filter(_is_read).batch(batch, batch_fn=list)
