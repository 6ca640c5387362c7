"""Story-completion items made from a hand-written book."""

from __future__ import annotations

from lst.data.corpus.prose import Section
from lst.data.corpus.stories import ENDINGS, plan_stories


def _tale(name: str, length: int) -> Section:
    """A tale of numbered sentences of eight words, three to a paragraph."""
    sentences = [f"The {name} number{i} went over the long hill." for i in range(length)]
    return Section(name, tuple(" ".join(sentences[i : i + 3]) for i in range(0, length, 3)))


BOOKS = {"bryant-stories": [_tale("fox", 24), _tale("hen", 24)], "austen-emma": [_tale("lady", 60)]}


def _number(sentence: str) -> int:
    return int(sentence.split("number")[1].split()[0])


def test_items_come_from_heldout_books_only() -> None:
    assert {s.book for s in plan_stories(BOOKS)} == {"bryant-stories"}


def test_the_right_ending_follows_the_prompt_and_the_wrong_ones_do_not() -> None:
    stories = plan_stories(BOOKS)
    assert len(stories) > 4
    for story in stories:
        tale = story.right.split()[1]
        prompt = [_number(part) for part in story.prompt.split(". ")]
        assert prompt == list(range(prompt[0], prompt[0] + 3))
        assert _number(story.right) == prompt[-1] + 1
        assert all(s.split()[1] == tale and _number(s) > _number(story.right) + 3 for s in story.later)
        assert all(s.split()[1] != tale for s in story.elsewhere)
        assert len({story.right, *story.later, *story.elsewhere}) == 1 + 2 * ENDINGS


def test_items_of_a_tale_do_not_overlap() -> None:
    used = [s for story in plan_stories(BOOKS) for s in (*story.prompt.split(". "), story.right)]
    assert len({sentence.rstrip(".") for sentence in used}) == len(used)


def test_the_choice_is_seeded_and_bounded() -> None:
    assert plan_stories(BOOKS, count=5) == plan_stories(BOOKS, count=5)
    assert len(plan_stories(BOOKS, count=5)) == 5


def test_voices_take_turns() -> None:
    speakers = [s.speaker for s in plan_stories(BOOKS, count=8)]
    assert len(set(speakers)) == 4


def test_an_ending_that_differs_only_in_punctuation_counts_as_the_same() -> None:
    tale = Section("cat", ("A cat sat on the mat today. " * 1 + " ".join(f"The cat saw {w} mice there." for w in "abcdefghij"),))
    echo = Section("dog", tuple(f'"The cat saw {w} mice there!"' for w in "abcdefghij"))
    for story in plan_stories({"bryant-stories": [tale, echo]}, count=9):
        bare = {"".join(c for c in s if c.isalnum() or c == " ").lower() for s in (story.right, *story.elsewhere, *story.later)}
        assert len(bare) == 1 + 2 * ENDINGS
