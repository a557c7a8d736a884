"""Work by key is done once for all who wait, whoever of them gives up."""

import asyncio

import pytest

from balcap_jax.rewards.llm.once import Once


def counted(result=None, error=None, until=None):
    """(work, the list of its starts)."""
    starts = []

    async def work():
        starts.append(None)
        await (until.wait() if until else asyncio.sleep(0))
        if error:
            raise error
        return result

    return work, starts


@pytest.mark.parametrize("keep", [True, False])
def test_who_waits_at_once_shares_a_result(keep):
    async def run():
        once, (work, starts) = Once(keep=keep), counted(result="answer")
        assert await asyncio.gather(*(once("a", work) for _ in range(5))) == ["answer"] * 5
        assert len(starts) == 1
        await once("b", work)
        assert len(starts) == 2
        await once("a", work)
        assert len(starts) == (2 if keep else 3)

    asyncio.run(run())


@pytest.mark.parametrize("keep", [True, False])
def test_a_failure_is_everyones_and_kept_as_results_are(keep):
    async def run():
        once, (work, starts) = Once(keep=keep), counted(error=ValueError("no"))
        found = await asyncio.gather(*(once("a", work) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in found] == ["no"] * 3
        with pytest.raises(ValueError, match="no"):
            await once("a", work)
        assert len(starts) == (1 if keep else 2)

    asyncio.run(run())


def test_one_who_gives_up_does_not_end_it_and_end_does():
    async def run():
        until = asyncio.Event()
        once, (work, starts) = Once(keep=False), counted(result=1, until=until)
        first, second = (asyncio.ensure_future(once("a", work)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        assert first.cancelled()
        until.set()
        assert await second == 1
        until.clear()
        third = asyncio.ensure_future(once("a", work))
        while len(starts) < 2:
            await asyncio.sleep(0)
        await once.end()
        with pytest.raises(asyncio.CancelledError):
            await third

    asyncio.run(run())
