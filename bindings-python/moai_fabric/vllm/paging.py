"""Which pages of a block table hold a request's tokens, in the pages that the description speaks of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Layers that share a block table.

    `block_slots` are the tokens of a block of vLLM's table, `page_slots` those of a page of the description: a backend may split blocks.
    Of a `window` only the last so many tokens are held, rounded out to pages.
    """

    name: str
    layers: tuple[int, ...]
    block_slots: int
    page_slots: int
    window: int | None = None

    @property
    def split(self) -> int:
        """Pages of a block."""
        return self.block_slots // self.page_slots

    def first_page(self, tokens: int) -> int:
        """The first page that holds one of a request's tokens."""
        if self.window is None:
            return 0
        return max(0, tokens - self.window) // self.page_slots

    def pages(self, table: list[int], tokens: int) -> list[int]:
        """The pages of a request of so many tokens.

        Raises `ValueError` where the table is too short.
        """
        first, end = self.first_page(tokens), -(-tokens // self.page_slots)
        if end > len(table) * self.split:
            raise ValueError(
                f"group {self.name}: a table of {len(table)} blocks of {self.block_slots} tokens, but the request has {tokens}"
            )
        return [table[page // self.split] * self.split + page % self.split for page in range(first, end)]

    def blocks(self, table: list[int], tokens: int) -> range:
        """Where in the table the blocks of those pages are."""
        first, end = self.first_page(tokens), -(-tokens // self.page_slots)
        return range(first // self.split, -(-end // self.split))
