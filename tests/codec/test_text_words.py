"""Captions as numbers of words: the rule that splits them, the vocabulary, what is cut."""

import pickle
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmoe.codec import TextEncoder, Words

CAPTIONS = ["A red circle, left of a blue square.", "A red square", "two red circles", "a"]


@pytest.fixture
def words() -> Words:
    return Words(["a", "red", "circle", ",", "12"], tokens=4)


def test_a_caption_is_its_words_then_padding(words: Words) -> None:
    found = words.encode(["a RED circle", "a circle is red, 12", "", " \t\n"])
    assert found.tokens.tolist() == [[2, 3, 4, 0], [2, 4, 1, 3], [0] * 4, [0] * 4]
    assert found.mask.tolist() == [[True] * 3 + [False], [True] * 4, [False] * 4, [False] * 4]
    assert str(found.tokens.dtype) == "torch.int64"
    assert words.encode([]).tokens.shape == (0, 4)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a Red-Circle", ["a", "red", "-", "circle"]),
        ("it's 3.14!!", ["it", "'", "s", "3", ".", "14", "!", "!"]),
        ("mp3_file 2x", ["mp", "3", "_", "file", "2", "x"]),
        ("ＦＵＬＬ ﬁve Ⅷ", ["full", "five", "viii"]),  # NFKC
        ("Größe ÉTÉ дом 家", ["größe", "été", "дом", "家"]),
        ("cafe\u0301", ["café"]),  # a letter and its accent apart
        ("\u1d2c", ["a"]),  # a capital only once it is normalised
        ("half \ud83d", ["half", "?"]),  # half a character
    ],
)
def test_words_numbers_and_signs_are_told_apart(caption: str, words: list[str]) -> None:
    assert list(Words.of([caption], 100, 9).words) == sorted(
        Counter(words), key=lambda word: (-words.count(word), word)
    )


def test_the_most_frequent_words_are_kept_and_ties_go_by_the_alphabet() -> None:
    whole = Words.of(CAPTIONS, 100, 8)
    assert whole.words == (
        *("a", "red", "square", ",", ".", "blue", "circle", "circles", "left", "of", "two"),
    )
    assert whole.rows == 13
    assert Words.of(CAPTIONS, 6, 8).words == whole.words[:4]
    assert Words.of(CAPTIONS, 6, 8).rows == 6
    assert Words.of(CAPTIONS[::-1], 100, 8).words == whole.words
    assert Words.of([], 100, 8).words == Words.of(CAPTIONS, 2, 8).words == ()


def test_what_is_cut_is_what_no_token_stands_for(words: Words) -> None:
    assert words.cut("a red circle , ") == "" == words.cut("")
    assert words.cut("a red circle, Left of  it ") == "left of  it"
    assert words.cut("ﬁ ﬁ ﬁ ﬁ ﬁ") == "fi"


@given(st.lists(st.text(max_size=30), max_size=5), st.integers(1, 6))
def test_every_text_is_read_in_any_company(captions: list[str], tokens: int) -> None:
    known = Words.of(captions, 2**20, tokens)
    found = known.encode(captions)
    assert not (found.tokens == 1).any()  # each word is known
    assert ((found.tokens > 0) == found.mask).all() and (found.tokens < known.rows).all()
    for row, caption in enumerate(captions):
        alone = known.encode([caption])
        assert (alone.tokens[0] == found.tokens[row]).all()
        assert bool(known.cut(caption)) <= bool(found.mask[row].all())
        assert not caption.isspace() or not found.mask[row].any()
    lines = "\n".join(known.words).splitlines()
    assert tuple(lines) == known.words  # as they are kept: one a line
    "\n".join(known.words).encode()


def test_equal_words_have_one_identity_and_others_another(words: Words) -> None:
    encoder: TextEncoder = words
    assert isinstance(words, TextEncoder) and encoder.tokens == 4
    assert encoder.identity == Words(list(words.words), 4).identity
    others: list[tuple[Sequence[str], int]] = [(words.words, 5), (words.words[::-1], 4)]
    others += [((*words.words, "x"), 4)]
    assert len({encoder.identity, *(Words(*other).identity for other in others)}) == 4


def test_words_go_to_other_processes(words: Words) -> None:
    other = pickle.loads(pickle.dumps(words))
    assert other.identity == words.identity
    assert other.encode(CAPTIONS).tokens.equal(words.encode(CAPTIONS).tokens)
