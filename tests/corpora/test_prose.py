import inspect

from megabert.corpora import prose

NUMPY_STYLE = """
    Compute the sum along the specified axis, as `numpy.sum` does.

    Parameters
    ----------
    a : array_like
        Array whose sum is desired.  If ``a`` is not an array, a
        conversion is attempted.
    axis : int, optional
        The axis along which the sum is computed; see :func:`~numpy.mean` for more.

    .. math:: x^2 + \\frac{1}{2}

    .. note:: This is worth a note, as the caller may not know it.

    .. code-block:: python

        this is code and not a sentence that should stay here.

    The example below shows how the function is used in practice::

        it is a literal block of the documentation.

    Text goes on after it, with a link to the manual [1]_ in it.

    >>> np.sum([1, 2])
    3
    ... this is the output of the session and not a text.

    =====  =====
    A      B
    =====  =====
    """

GOOGLE_STYLE = """
    Encodes a text with the [`BertTokenizer`] and **returns** it.

    Args:
        text (`str` or `List[str]`, *optional*, defaults to `None`):
            The text that is encoded by the function.
        pair (str): Another text that follows the first.

    Returns:
        The ids of the tokens of both texts.

    - A bullet of the list that is a sentence.
    - Another bullet, wrapped over
      two lines of the text.

    ```python
    this is a code block that is not to be kept.
    ```
    x, y, z = 1, 2, 3
    """


def test_numpy_style():
    assert prose.paragraphs(inspect.cleandoc(NUMPY_STYLE)) == [
        "Compute the sum along the specified axis, as numpy.sum does.",
        "a: array_like Array whose sum is desired. If a is not an array, a conversion is attempted.",
        "axis: int, optional The axis along which the sum is computed; see numpy.mean for more.",
        "This is worth a note, as the caller may not know it.",
        "The example below shows how the function is used in practice.",
        "Text goes on after it, with a link to the manual in it.",
    ]


def test_google_style():
    assert prose.paragraphs(inspect.cleandoc(GOOGLE_STYLE)) == [
        "Encodes a text with the BertTokenizer and returns it.",
        "text (str or List[str], optional, defaults to None): The text that is encoded by the function.",
        "pair (str): Another text that follows the first.",
        "Returns: The ids of the tokens of both texts.",
        "A bullet of the list that is a sentence.",
        "Another bullet, wrapped over two lines of the text.",
    ]


def test_what_is_not_prose():
    for text in (
        "", "Short.", "for (int i = 0; i < n; ++i) { sum += a[i]; }", "tensor([[1., 2.], [3., 4.]])",
        "alpha beta gamma delta epsilon zeta eta theta.", "A sentence of the text that has no end",
    ):  # fmt: skip
        assert not prose.is_prose(text), text
