"""What several processes of one `accelerate launch` do together: split a list, join what each found, do a thing once.

An error in one process is raised in all of them, for the others would wait for it forever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gendiff.errors import GendiffError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def process_state() -> PartialState:
    """What knows the number of processes and this one's place among them; alone, a world of one."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without being told, it takes several processes on CPUs for as many that know nothing of each other.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def each_its_share(items: Sequence[T], work: Callable[[Sequence[T]], Any]) -> list[Any]:
    """Results of `work(items[rank::world])` of every process, by rank; every process gets them all.

    Args:
        items: what there is to do, the same on every process; a share may be empty.
        work: its result is sent to the others, so it must be picklable.

    Raises:
        Exception: that of `work`; a GendiffError with its text where it happened in another process.
    """
    state = process_state()
    if state.num_processes == 1:
        return [work(items)]
    return _exchange(lambda: work(items[state.process_index :: state.num_processes]))


def once(work: Callable[[], T]) -> T:
    """Result of `work()`, which only the main process calls; every process gets it."""
    state = process_state()
    if state.num_processes == 1:
        return work()
    return _exchange(lambda: work() if state.is_main_process else None)[0]


def _exchange(work: Callable[[], Any]) -> list[Any]:
    """One gather of what each process found, or of how it failed."""
    from accelerate.utils import gather_object

    found, failure = None, None
    try:
        found = work()
    except Exception as error:
        failure = error
    text = None if failure is None else f"{type(failure).__name__}: {failure}"
    # Lists, because gathering joins them; an object of its own would be lost among those of others.
    gathered: list[tuple[Any, str | None]] = gather_object([(found, text)])
    if failure is not None:
        raise failure
    for rank, (_, other) in enumerate(gathered):
        if other is not None:
            raise GendiffError(f"process {rank} failed with {other}")
    return [result for result, _ in gathered]
