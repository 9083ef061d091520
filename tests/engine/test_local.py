"""The engine behind an event loop: streams, cancellation by closing, refusals, death."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from ridgeline.engine.local import LocalEngine
from ridgeline.errors import EngineDeadError, OverloadedError, RequestError
from tests.engine.fake_chip import expected_tokens, fake_engine, request


async def tokens_of(client: LocalEngine, wanted) -> list[int]:
    async with aclosing(client.generate(wanted)) as stream:
        return [token async for chunk in stream for token in chunk.token_ids]


def test_many_at_once_give_what_each_gives_alone() -> None:
    async def scene() -> None:
        client = LocalEngine(fake_engine()[0])
        requests = [request(f"r{i}", [i] * (1 + i), max_tokens=1 + i % 7) for i in range(50)]
        answers = await asyncio.gather(*(tokens_of(client, each) for each in requests))
        assert answers == [expected_tokens(each) for each in requests]
        statistics = await client.statistics()
        assert statistics.num_finished == 50
        assert statistics.num_free_pages == statistics.num_pages
        assert client._deliver == {}
        await client.close()

    asyncio.run(scene())


def test_closing_the_iterator_cancels() -> None:
    async def scene() -> None:
        client = LocalEngine(fake_engine(context_tokens=4096)[0])
        async with aclosing(client.generate(request("x", [1], max_tokens=4000))) as stream:
            await anext(stream)
        while (await client.statistics()).num_cancelled == 0:
            await asyncio.sleep(0.001)
        assert (await client.statistics()).num_free_pages == 64
        await client.close()

    asyncio.run(scene())


def test_cancel_by_id_ends_the_stream_with_a_word() -> None:
    async def scene() -> None:
        client = LocalEngine(fake_engine(context_tokens=4096)[0])
        reasons = []
        async for chunk in client.generate(request("x", [1], max_tokens=4000, n=2)):
            await client.cancel("x")
            reasons.append(chunk.finish_reason)
        assert [reason.value for reason in reasons if reason is not None] == ["cancelled", "cancelled"]
        await client.cancel("nobody")
        await client.close()

    asyncio.run(scene())


def test_refusals_come_before_the_first_chunk() -> None:
    async def scene() -> None:
        client = LocalEngine(fake_engine(max_queued_requests=1, context_tokens=4096, max_sequences=1)[0])
        with pytest.raises(RequestError):
            await tokens_of(client, request("bad", []))
        slow = asyncio.create_task(tokens_of(client, request("a", [1], max_tokens=3000)))
        while (await client.statistics()).num_running == 0:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(tokens_of(client, request("b", [1], max_tokens=3)))
        while (await client.statistics()).num_waiting == 0:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError):
            await tokens_of(client, request("c", [1]))
        with pytest.raises(RequestError, match="in use"):
            await tokens_of(client, request("a", [1]))
        hasty = asyncio.create_task(tokens_of(client, request("a", [1])))
        await asyncio.sleep(0)
        hasty.cancel()
        await asyncio.gather(hasty, return_exceptions=True)
        await client.statistics()
        assert not slow.done(), "an id that was refused, or left at once, does not end the request that has it"
        await client.cancel("a")
        await slow
        assert len(await waiting) == 3
        await client.close()

    asyncio.run(scene())


def test_a_dead_engine_fails_everyone_clearly() -> None:
    async def scene() -> None:
        engine, step = fake_engine(max_sequences=1)
        step.fail_steps = set(range(1, 99))
        client = LocalEngine(engine)
        results = await asyncio.gather(
            *(tokens_of(client, request(f"r{i}", [1], max_tokens=3)) for i in range(6)), return_exceptions=True
        )
        assert sum(isinstance(each, EngineDeadError) for each in results) >= 4
        with pytest.raises(EngineDeadError):
            await tokens_of(client, request("late", [1]))
        await client.close()

    asyncio.run(scene())


def test_close_while_running() -> None:
    async def scene() -> None:
        client = LocalEngine(fake_engine(context_tokens=4096)[0])
        running = asyncio.create_task(tokens_of(client, request("x", [1], max_tokens=4000)))
        await asyncio.sleep(0.01)
        await client.close()
        assert len(await running) < 4000
        with pytest.raises(EngineDeadError):
            await client.statistics()

    asyncio.run(scene())
