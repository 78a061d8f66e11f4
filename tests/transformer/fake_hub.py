"""A hub with one model, the embedded one, of which the weights may fail."""

from __future__ import annotations

from dictlearn.transformer.embedded import embedded_folder
from tests.fake_hub import REVISION, FakeHub


class ModelHub(FakeHub):
    """Has the model some/model."""

    def answer(self, path: str) -> None:
        """Answer as the hub does."""
        file = embedded_folder() / path.rpartition("/")[2]
        if "/resolve/" in path and file.is_file():
            self.send_file(file.name, file.read_bytes(), file.suffix == ".safetensors")
        elif path.startswith("/api/models/some/model"):
            self.say({"id": "some/model", "sha": REVISION, "private": False, "siblings": []})
        else:
            self.not_there()
