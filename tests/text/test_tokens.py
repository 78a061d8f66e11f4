import json
import logging
import multiprocessing
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dictlearn.errors import InputError
from dictlearn.text import tokenize
from dictlearn.text.store import open_store
from dictlearn.text.tokens import token_ids, tokenizer_fingerprint
from tests.reliability.hostile import Hostile
from tests.storage.test_atomic import of_a_dead_process
from tests.text.conftest import Given, sentences

DIRTY = (
    "",
    " \n",
    "\u200b\u200b",
    "\x00",
    "\U0001f600 \U0001f926\u200d\u2642\ufe0f",
    "漢字かな交じり文",
    "x" * 5000,
    "[CLS] written out <|endoftext|> [SEP]",
    "a lone \ud800 surrogate and half \udc00 more",
    "the same line without end " * 40_000,
)


def test_the_store_holds_the_ids_of_each_document(tokenizer: Any, tmp_path: Path) -> None:
    texts = tuple(sentences(n, n + 3) for n in range(700))
    store = tokenize(Given(texts), tokenizer, tmp_path)
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == np.int32
    assert store.offsets.dtype == np.int64
    assert store.content_hashes.dtype == np.uint64
    assert store.document_ids == [f"given#{n}" for n in range(700)]
    for n in (0, 1, 511, 512, 699):
        own = store.tokens[store.offsets[n] : store.offsets[n + 1]]
        assert own.tolist() == tokenizer(texts[n], add_special_tokens=False)["input_ids"]
    assert store.offsets[-1] == len(store.tokens) == store.meta["tokens"]
    assert store.meta["characters"] == sum(map(len, texts))


def test_reopening_reads_and_does_not_tokenise(tokenizer: Any, tmp_path: Path) -> None:
    source = Given((sentences(0, 5), sentences(5, 9)))
    first = tokenize(source, tokenizer, tmp_path)

    class Closed(Given):
        def documents(self) -> Any:
            raise AssertionError("read again")

    again = tokenize(Closed(source.texts), tokenizer, tmp_path)
    assert again.path == first.path
    assert np.array_equal(again.tokens, first.tokens)
    assert again.meta == first.meta


def test_another_text_or_tokenizer_makes_another_store(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = Given((sentences(0, 5), sentences(5, 9)))
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    assert tokenize(source, other, tmp_path).path == tokenize(source, tokenizer, tmp_path).path
    other("padded", padding="max_length", truncation=True, max_length=9)  # leaves its traces
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
    other.add_tokens(["riverboat"])
    assert tokenize(source, other, tmp_path).path != tokenize(source, tokenizer, tmp_path).path
    longer = Given((*source.texts, "More."))
    assert tokenize(longer, tokenizer, tmp_path).path != tokenize(source, tokenizer, tmp_path).path


def test_dirty_text_is_tokenised_without_harm(tokenizer: Any, tmp_path: Path) -> None:
    """B6 documents of blanks, NUL, emoji, lone surrogates or 1 MB without a line end: counted
    exactly, no crash.
    """
    store = tokenize(Given(DIRTY), tokenizer, tmp_path)
    assert store.meta["dropped_without_tokens"] == 4  # the first four say nothing to this model
    assert store.document_ids == [f"given#{n}" for n in range(4, 10)]
    assert len(np.unique(store.content_hashes)) == 6
    assert store.tokens.max() < len(tokenizer)
    lengths = np.diff(store.offsets)
    assert lengths[2] == 1  # 5000 x "x": one unknown word
    assert lengths[-1] == 5 * 40_000


def test_special_tokens_written_out_are_ordinary_text(tokenizer: Any) -> None:
    """B6 special tokens are written out in a text: read as ordinary words."""
    ids = token_ids(tokenizer, ["[CLS] a [SEP] b [PAD]"])[0]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids).replace(" ", "") == "[cls]a[sep]b[pad]"


def test_exact_duplicates_are_dropped_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    """B8 documents that come twice: kept once, and the others are counted."""
    one, two = sentences(0, 4), sentences(4, 8)
    store = tokenize(Given((one, two, one, one + " ", two)), tokenizer, tmp_path)
    assert store.document_ids == ["given#0", "given#1", "given#3"]
    assert store.meta["dropped_duplicates"] == 2


def test_text_without_tokens_is_a_mistake_and_leaves_nothing(
    tokenizer: Any, tmp_path: Path
) -> None:
    """B6 no document holds a token: one sentence, and nothing is left behind."""
    with pytest.raises(InputError, match="given holds no text"):
        tokenize(Given(("", " ", "\u200b")), tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    """C6 the text source fails on the way: its sentence is told, and nothing half made is left."""

    class Failing(Given):
        def documents(self) -> Any:
            yield from super().documents()
            raise InputError("the rest cannot be read")

    with pytest.raises(InputError, match="the rest"):
        tokenize(Failing(tuple(sentences(n, n + 2) for n in range(600))), tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="not a fast one"):
        tokenize(Given(("Text.",)), Slow(), tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tokenizer: Any, tmp_path: Path) -> None:
    """A7 the folder for tokenised text cannot be written: named in one sentence."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"data_dir=.*taken.* cannot be written"):
        tokenize(Given((sentences(0, 3),)), tokenizer, tmp_path / "taken")


@pytest.fixture(scope="module")
def stored(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Given((sentences(0, 30), sentences(30, 60)))
    return tokenize(source, tokenizer, tmp_path_factory.mktemp("stored")).path


FILES = ("tokens.npy", "offsets.npy", "content_hashes.npy", "document_ids.json", "meta.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "empty", "gone", "pickle"])
def test_a_damaged_store_is_named(damage: str, file: str, stored: Path, tmp_path: Path) -> None:
    """A5, E1 tokenised text is truncated, flipped, gone or a pickle: one sentence that names it,
    nothing is executed.
    """
    folder = tmp_path / "store"
    shutil.copytree(stored, folder)
    content = (folder / file).read_bytes()
    chance, marker = random.Random(0), tmp_path / "marker"
    for _ in range(25 if damage in ("truncated", "flipped") else 1):
        place = chance.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        bad = {
            "truncated": content[:place],
            "flipped": bytes(flipped),
            "longer": content + b"x",
            "empty": b"",
            "gone": b"",
            "pickle": pickle.dumps(Hostile(marker)),
        }[damage]
        (folder / file).write_bytes(bad)
        if damage == "gone":
            (folder / file).unlink()
        if (damage, file) == ("flipped", "meta.json"):
            continue  # it has no digest; what it says of others is checked, the rest is a report
        with pytest.raises(InputError, match=r"is damaged .*: delete that folder and run again"):
            open_store(folder)
    assert not marker.exists()
    assert len(open_store(stored).document_ids) == 2


def test_progress_counts_up(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []
    source = Given(tuple(sentences(n, n + 2) for n in range(1100)))
    with caplog.at_level(logging.INFO, logger="dictlearn.text"):
        store = tokenize(source, tokenizer, tmp_path, lambda *counts: seen.append(counts))
    assert len(seen) == 3
    assert seen == sorted(seen)
    assert seen[-1] == (1100, len(store.tokens))
    assert "1100 documents" in caplog.text


def _build(tokenizer: Any, source: Given, directory: Path, start: Any, results: Any) -> None:
    start.wait()
    store = tokenize(source, tokenizer, directory, progress=False)
    results.put((str(store.path), int(store.tokens.sum()), len(store.tokens)))


def test_what_a_killed_process_left_half_made_is_cleared_away(
    tokenizer: Any, tmp_path: Path
) -> None:
    """A1 a process is killed while it tokenises: what it left goes when the next text is."""
    left = of_a_dead_process(tmp_path / "key")
    store = tokenize(Given((sentences(0, 3),)), tokenizer, tmp_path, progress=False)
    assert not left.exists()
    assert list(tmp_path.iterdir()) == [store.path]


def test_four_processes_build_the_same_store(tokenizer: Any, tmp_path: Path) -> None:
    """A6 four processes tokenise the same text at once: all read the same ids, nothing is half
    made.
    """
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    source = Given(tuple(sentences(n, n + 3) for n in range(600)))
    arguments = (tokenizer, source, tmp_path, start, results)
    workers = [context.Process(target=_build, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(found[0][0]).name]
    alone = tokenize(source, tokenizer, tmp_path / "alone", progress=False)
    assert found[0][1:] == (int(alone.tokens.sum()), len(alone.tokens))


def test_memory_does_not_grow_with_the_number_of_tokens(tmp_path: Path) -> None:
    """15 M tokens in a process of its own: as Python lists alone they would take 0.5 GB."""
    code = f"""
import resource, json
from pathlib import Path
from dictlearn.text import Document, tokenize

class Words:
    name, validation_fraction = "words", 0.0
    def fingerprint(self): return "words"
    def documents(self):
        for n in range(150):
            yield Document(str(n), f"{{n}} " + "a b " * 50_000)

class Fake:
    is_fast = True
    class backend_tokenizer:
        to_str = staticmethod(lambda: "{{}}")
    def __len__(self): return 100
    def __call__(self, texts, **options):
        return {{"input_ids": [[7] * (len(text) // 2) for text in texts]}}

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = tokenize(Words(), Fake(), Path({str(tmp_path)!r}), progress=False)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([len(store.tokens), (after - before) / 1024]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tokens, megabytes = json.loads(done.stdout)
    assert tokens > 14_000_000
    assert megabytes < 120


def test_the_room_imports_nothing_heavy() -> None:
    code = (
        "import sys, dictlearn.text\n"
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
