import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

import dictlearn
from dictlearn.text import HubText, LocalText

FILES = sorted((Path(dictlearn.__file__).parent.parent / "conf" / "text").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_names_every_option_with_its_default_and_a_comment(file: Path) -> None:
    config: Any = OmegaConf.load(file)
    if OmegaConf.is_missing(config, "path"):
        config.path = "some/where"
    signature = inspect.signature(get_object(config["_target_"]))
    assert set(config) - {"_target_"} == set(signature.parameters)
    source = instantiate(config)
    assert 0 < source.validation_fraction < 1
    assert source.name
    if file.stem != "wikitext103":
        for name, parameter in signature.parameters.items():
            assert name == "path" or config[name] == parameter.default
    for line in file.read_text().splitlines():
        assert "#" in line or line.startswith("_target_")


def test_there_is_a_file_for_each_source() -> None:
    assert [file.stem for file in FILES] == ["hub", "installed_docs", "local", "wikitext103"]


def test_the_articles_of_wikitext_are_those_of_the_paper(tmp_path: Path) -> None:
    config: Any = OmegaConf.load(next(file for file in FILES if file.stem == "wikitext103"))
    source = instantiate(config)
    assert isinstance(source, HubText)
    assert (source.min_characters, source.split_documents) == (2000, "headings")
    text = tmp_path / "mine.txt"
    text.write_text("A word of mine. " * 400)
    own = instantiate(config, path=str(text))
    expected = LocalText(str(text), min_characters=2000)
    assert list(own.documents()) == list(expected.documents())
