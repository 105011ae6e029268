"""The blocks of the book's chapter run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAPTER = Path(__file__).parents[2] / "docs" / "src" / "python.md"
BLOCKS = re.findall(r"^```python,test\n(.*?)^```", CHAPTER.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_chapter_runs(number: int) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS[number]], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    if number == 0:
        assert done.stdout == f"{100 * 2 * 64 * 4}\n"


def test_the_chapter_has_its_blocks_and_names_every_exception() -> None:
    import moai_fabric as moai

    assert len(BLOCKS) == 4
    text = CHAPTER.read_text()
    for name in moai.__all__:
        if isinstance(getattr(moai, name), type) and issubclass(getattr(moai, name), moai.Error):
            assert f"`{name}`" in text or f"`moai_fabric.{name}`" in text, name
