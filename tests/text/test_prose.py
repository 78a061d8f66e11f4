from dictlearn.text.prose import is_prose, paragraphs


def prose(docstring: str) -> list[str]:
    return list(paragraphs(docstring))


def test_markup_goes_and_the_sentence_stays() -> None:
    text = """Return the :class:`~torch.nn.Module` that ``forward`` calls first, see
    :ref:`the notes <notes>` and `the paper <https://example.org>`_ of **all** authors [1]_."""
    assert prose(text) == [
        "Return the Module that forward calls first, see the notes and the paper of all authors."
    ]


def test_code_doctests_tables_and_directives_are_dropped() -> None:
    text = """
    This is the one sentence that is worth to be kept here.

    >>> the_value = compute(of, the, things, that, are, in, the, list)
    and this is the output of the example in the doctest

    Example::

        the code that is in this block is not for the reader

    .. code-block:: python

        so is the code that is written in this block of it

    ```python
    and the code that is in between the two fences of this
    ```

    +--------+-------------------------------+
    | a name | and the text that is in a cell |
    +--------+-------------------------------+
    """
    assert prose(text) == ["This is the one sentence that is worth to be kept here."]


def test_a_note_is_read_though_it_stands_in_a_directive() -> None:
    text = """
    .. note::
        The weights of the module are shared with those of the decoder.
    """
    assert prose(text) == ["The weights of the module are shared with those of the decoder."]


def test_descriptions_of_parameters_lose_their_names_and_types() -> None:
    google = """
    Args:
        lr (float, optional): the size of the step that is taken
            in the direction of the gradient.
        k (int): how many of the largest entries of each row are kept.
    """
    numpy = """
    Parameters
    ----------
    axis : int or tuple of int, optional
        The axis along which the mean of the values is computed.
    """
    assert prose(google) == [
        "the size of the step that is taken in the direction of the gradient.",
        "how many of the largest entries of each row are kept.",
    ]
    assert prose(numpy) == ["The axis along which the mean of the values is computed."]


def test_items_of_a_list_are_paragraphs_of_their_own() -> None:
    text = """
    - the first of the things that we have to say to you
      and this is how it goes on in the next line
    - the second of the things that we have to say to you
    """
    assert prose(text) == [
        "the first of the things that we have to say to you and this is how it goes on in the next "
        "line",
        "the second of the things that we have to say to you",
    ]


def test_headings_and_their_underlines_are_dropped() -> None:
    text = "A Heading That Is Long Enough to Be a Sentence of the Text\n=====\n\nThe text."
    assert prose(text) == []


def test_formulas_and_short_labels_are_no_prose() -> None:
    assert is_prose("The mean of the rows is taken away from each of them.")
    assert not is_prose("Returns the value.")
    assert not is_prose(r"\frac{a}{b} = \sum_i x_i \cdot y_i for all of the i in the set of it")
    assert not is_prose("x = y if x is not None else the[0] and the_other(of=it, to=that) == 3")
    assert not is_prose("alpha beta gamma delta epsilon zeta eta theta iota kappa")
