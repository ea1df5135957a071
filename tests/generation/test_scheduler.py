"""The scheduler: who gets a slot, who gives it up, and what is left after a step that failed."""

from quill.engines.request import Request
from quill.generation.scheduler import Scheduler


def scheduler_of(*prompts: tuple[int, ...], slots: int = 2) -> Scheduler:
    scheduler = Scheduler(slots, context=16)
    requests = {prompt: Request(prompt, 5) for prompt in set(prompts)}
    for request_id, prompt in enumerate(prompts):
        scheduler.add(request_id, requests[prompt])
    return scheduler


def admitted(scheduler: Scheduler) -> list[int]:
    """Admit all that can be admitted, as if each were read at once; return their ids."""
    found = []
    while admission := scheduler.admit():
        admission.sequence.tokens.append(0)
        admission.sequence.num_generated += 1
        found.append(admission.sequence.request_id)
    return found


def test_requests_get_slots_in_the_order_of_arrival():
    scheduler = scheduler_of((1,), (2,), (3,), (4,))
    assert admitted(scheduler) == [0, 1]
    scheduler.end(2)  # while it waits
    scheduler.end(0)
    assert admitted(scheduler) == [3]


def test_very_many_requests_leave_the_queue_in_any_order():
    # W13: each departure once rebuilt the whole queue, so that these took hours.
    scheduler = scheduler_of(*[(1,)] * 200_000)
    for request_id in [*range(0, 200_000, 2), *reversed(range(1, 200_000, 2))]:
        scheduler.end(request_id)
    assert not scheduler.busy and not scheduler.waiting


def test_a_parked_request_waits_for_its_reader_and_comes_back_at_the_end_of_the_queue():
    scheduler = scheduler_of((1,), (2,), (3,), slots=1)
    assert admitted(scheduler) == [0]
    parked = scheduler.park(0)
    assert parked is not None and parked.slot == 0
    assert admitted(scheduler) == [1]
    scheduler.resume(0)
    assert list(scheduler.waiting) == [2, 0]
    scheduler.end(2)
    scheduler.end(1)
    assert admitted(scheduler) == [0]


def test_a_parked_request_that_was_cancelled_does_not_come_back():
    scheduler = scheduler_of((1,))
    scheduler.park(0)
    scheduler.end(0)
    scheduler.resume(0)
    assert not scheduler.busy and not scheduler.waiting


def test_after_a_restart_every_open_request_waits_the_oldest_first_and_slots_are_empty():
    scheduler = scheduler_of((1, 2, 3, 4, 5, 6, 7, 8, 9), (2,), (3,), (1, 2, 3, 4, 5, 6, 7, 8, 9))
    assert admitted(scheduler) == [0, 1]
    scheduler.park(1)
    scheduler.end(2)
    scheduler.restart()
    assert list(scheduler.waiting) == [0, 1, 3]
    assert (admission := scheduler.admit()) is not None and admission.shared == 0


def test_a_paused_request_gives_up_its_slot_only_to_a_waiting_one():
    scheduler = scheduler_of((1,), (2,))
    assert admitted(scheduler) == [0, 1]
    scheduler.running[1].paused = True
    assert scheduler.preemptible() is None
    scheduler.add(2, Request((3,), 5))
    assert scheduler.preemptible() == 1


def test_shared_prefixes_are_found_at_every_length():
    for shared in range(12):
        scheduler = scheduler_of(tuple(range(12)))
        assert admitted(scheduler) == [0]
        scheduler.add(1, Request((*range(shared), 99, 98), 5))
        assert (admission := scheduler.admit()) is not None
        assert (admission.shared, admission.source) == (shared, 0 if shared else admission.source)
