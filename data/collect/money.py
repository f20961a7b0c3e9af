"""The budget: what was spent, what requests under way may yet cost, and whether the next one still fits."""

import asyncio

from data.collect.classify import Usage
from data.collect.settings import Teacher

MESSAGE_TOKENS = 64  # roles, separators and a vendor's own preamble


class OverBudget(Exception):
    """The next request might pass the budget, and nothing under way can free any of it."""


class Ledger:
    """Reserves the worst case of a request before it is sent and books the true cost after.

    Used from one event loop: between a check and its booking nothing else runs.
    """

    def __init__(self, budget: float | None, spent: float = 0.0):
        self.budget = budget
        self.spent = spent
        self.reserved = 0.0
        self._open = 0
        self._changed = asyncio.Event()

    def fits(self, amount: float) -> bool:
        return self.budget is None or amount <= 0 or self.spent + self.reserved + amount <= self.budget

    async def reserve(self, amount: float) -> None:
        """Wait until `amount` fits beside what is under way.

        Raises:
            OverBudget: it does not fit, and no request is under way that may turn out cheaper than reserved.
        """
        while not self.fits(amount):
            if not self._open:
                raise OverBudget
            await self._changed.wait()
        self._open += 1
        self.reserved += amount

    def settle(self, amount: float, cost: float) -> None:
        """Free a reservation and book what it really cost."""
        self._open -= 1
        self._book(amount, cost)

    def hold(self, amount: float) -> None:
        """Reserve for a batch, which no one waits for: it may be under way for a day."""
        self.reserved += amount

    def settle_hold(self, amount: float, cost: float) -> None:
        self._book(amount, cost)

    def _book(self, amount: float, cost: float) -> None:
        self.reserved = max(0.0, self.reserved - amount)
        self.spent += cost
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def price(teacher: Teacher, usage: Usage) -> float:
    """Cost of a request in the budget's currency; 0 where no prices are given."""
    return (usage.tokens_in * (teacher.price_in or 0) + usage.tokens_out * (teacher.price_out or 0)) / 1e6


def worst_usage(teacher: Teacher, prompt: str, films: int) -> Usage:
    """Upper bound of a request's tokens: a byte of text is at most one token, a film `image_tokens`, the answer
    `max_tokens`."""
    return Usage(len(prompt.encode()) + films * teacher.image_tokens + MESSAGE_TOKENS, teacher.max_tokens)
