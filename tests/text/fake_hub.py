"""A hub with one dataset that real clients read, and of which the second file may fail."""

from __future__ import annotations

import json

from tests.fake_hub import REVISION, FakeHub

FILES, ROWS = 3, 1000
TEXTS = [f"Document {n} of a text that is read over a network." for n in range(FILES * ROWS)]


class TextHub(FakeHub):
    """Has the dataset some/where."""

    def answer(self, path: str) -> None:
        """Answer as the hub does."""
        if path.endswith(".jsonl"):
            number = int(path[-7])
            self.send_file(f"{number:040}", content(number), failing=number == 1)
        elif path.endswith(f"/tree/{REVISION}"):
            files = ({"type": "file", "path": f"{n}.jsonl", "oid": "a" * 40} for n in range(FILES))
            self.say([{**file, "size": len(content(n))} for n, file in enumerate(files)])
        elif path.startswith("/api/datasets/some/where") and "/tree/" not in path:
            names = [{"rfilename": f"{number}.jsonl"} for number in range(FILES)]
            self.say({"id": "some/where", "sha": REVISION, "siblings": names, "private": False})
        else:
            self.not_there()


def content(number: int) -> bytes:
    """A file of the dataset."""
    rows = TEXTS[number * ROWS : (number + 1) * ROWS]
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
