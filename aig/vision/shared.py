"""Caches of a process: loaded modules by their files, and a bounded number of values by prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")
CACHED_PROMPTS = 8192  # 32 MiB of embeddings with 1024 float32 each

_LOADED: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()


def shared(key: Hashable, load: Callable[[], T]) -> T:
    """`load()`, or the object that it returned for an equal key, if that is still in use."""
    loaded = _LOADED.get(key)
    if loaded is None:
        loaded = _LOADED[key] = load()
    return loaded


class ByPrompt(Generic[T]):
    """A cache of at most `size` values by prompt; the least recently used leave first."""

    def __init__(self, size: int = CACHED_PROMPTS) -> None:
        self.size = size
        self._values: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, prompts: Sequence[str], compute: Callable[[list[str]], Sequence[T]]) -> list[T]:
        """One value per prompt; missing ones come from one call of `compute` with the distinct prompts."""
        known = {prompt: self._values[prompt] for prompt in prompts if prompt in self._values}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            known |= dict(zip(new, compute(new), strict=True))
        for prompt, value in known.items():
            self._values[prompt] = value
            self._values.move_to_end(prompt)
        while len(self._values) > self.size:
            self._values.popitem(last=False)
        return [known[prompt] for prompt in prompts]
