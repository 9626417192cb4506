import asyncio
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from sightloom.data.fetch.slots import LEASE_S, POLL_S, Leases, Places


class Counted:
    """Places that count the messages they got, and what is held by whom."""

    def __init__(self, per_host: int, patience_s: float = 60.0) -> None:
        self.places, self.messages, self.held = Places(per_host, patience_s), 0, Counter[str]()

    async def exchange(self, task: str, wanted: dict[str, int], returned: dict[str, int]) -> dict[str, int]:
        self.messages += 1
        given = await self.places.exchange(task, wanted, returned)
        self.held.update(given)
        self.held.subtract(returned)
        return given


async def ask(leases: Leases, hosts: list[str], under_way: Counter[str], most: Counter[str], seconds: float) -> None:
    async def one(host: str) -> None:
        await leases.acquire(host)
        under_way[host] += 1
        most[host] = max(most[host], under_way[host])
        await asyncio.sleep(seconds)
        under_way[host] -= 1
        leases.release(host)

    await asyncio.gather(*map(one, hosts))


def test_tasks_that_want_one_host_share_its_places_and_never_ask_more_at_once() -> None:
    under_way, most, done = Counter[str](), Counter[str](), []
    counted = Counted(4)

    async def task(name: str, count: int) -> None:
        async with Leases(counted) as leases:
            await ask(leases, ["a"] * count, under_way, most, 0.02)
        done.append(name)

    async def run() -> None:
        await asyncio.gather(task("long", 600), task("short", 20), task("other", 20))

    asyncio.run(run())
    assert most["a"] == 4
    assert done[-1] == "long"  # 3 s of work on four places: the others came to their turn in between
    assert counted.held["a"] == 0


def test_one_task_asks_for_places_now_and_then_not_with_every_url() -> None:
    under_way, most = Counter[str](), Counter[str]()
    one_host, many_hosts = Counted(4), Counted(4)

    async def run(counted: Counted, hosts: list[str]) -> None:
        async with Leases(counted) as leases:
            await ask(leases, hosts, under_way, most, 0.001)

    asyncio.run(run(one_host, ["a"] * 400))
    asyncio.run(run(many_hosts, [f"host-{number}" for number in range(400)]))
    assert most["a"] == 4 and most["host-7"] == 1
    assert one_host.messages < 40 and many_hosts.messages < 10
    assert not +one_host.held and not +many_hosts.held


def test_a_place_goes_back_while_its_task_lives_so_that_others_can_ask() -> None:
    async def run() -> float:
        places = Places(1, 60.0)
        loop = asyncio.get_running_loop()
        async with Leases(places) as first, Leases(places) as second:
            await first.acquire("a")
            first.release("a")
            started = loop.time()
            await second.acquire("a")
            return loop.time() - started

    assert asyncio.run(run()) < LEASE_S


def test_places_of_a_task_that_was_lost_come_back_and_turns_are_kept() -> None:
    now = 0.0
    places = Places(4, 10.0, lambda: now)

    def exchange(task: str, wanted: int, returned: int = 0) -> int:
        wants, returns = ({"a": count} if count else {} for count in (wanted, returned))
        return asyncio.run(places.exchange(task, wants, returns)).get("a", 0)

    assert exchange("lost", 9) == 4
    now = 3.0
    assert exchange("first", 1) == exchange("second", 3) == 0
    assert exchange("lost", 2, 1) == 0  # what it gave back is for who asked before
    assert exchange("second", 3) == 0 and exchange("first", 1) == 1
    now = 9.0
    assert exchange("second", 3) == 0
    now = 10.5
    assert exchange("second", 4) == 3  # three are lost, the fourth is in use
    assert exchange("lost", 0, 3) == 0  # it comes back late: what it lost is not its own to give back
    assert exchange("third", 1) == 0
    assert exchange("first", 0, 1) == 0 and exchange("third", 1) == 1


def test_what_the_keeper_of_the_places_raises_is_raised_where_places_are_asked_for() -> None:
    class Gone:
        async def exchange(self, task: str, wanted: Any, returned: Any) -> dict[str, int]:
            raise RuntimeError("the keeper died")

    async def run() -> None:
        leases = Leases(Gone())
        await leases.__aenter__()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the keeper died"):
                await asyncio.wait_for(leases.acquire("a"), 5 * POLL_S)

    asyncio.run(run())


def test_a_task_that_fetches_loads_no_torch() -> None:
    heavy = "{'torch', 'open_clip', 'transformers', 'ray'}"
    code = f"import sys, sightloom.data.fetch.chunk; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
