"""Every metric has words; every pattern of names is made somewhere."""

import ast
import json
import re

import pytest
import yaml

from realm.core.files import REPOSITORY
from realm.evaluation.names import FILE, PLACE, MetricNames, metric_names, readable

COMMITTED = sorted((REPOSITORY / "figures").rglob("reference_metrics.json"))
NAMES = """
words:
  who: {usergpt: UserGPT, base: the base model, base_late: the late base}
stage:
  score_{who}: "score of {who}"
  score_later_{who}: "later score of {who}"
  score_{model}: "score by {model}"
  fixed: a fixed one
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("score_usergpt", "score of UserGPT"),
        ("score_base_late", "score of the late base"),
        ("score_later_base", "later score of the base model"),
        ("score_my_judge-7b.v1", "score by my judge-7b.v1"),
        ("fixed", "a fixed one"),
        ("fixed_too", None),
        ("score_", None),
        ("fixed\n", None),
        ("", None),
    ],
)
def test_a_pattern_is_read_by_its_list_of_words_first(name, words):
    assert MetricNames(NAMES).readable(name) == words


def test_a_name_without_words_is_shown_as_it_is():
    assert readable("no_such_metric_at_all!") == "no_such_metric_at_all!"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.parent.name)
def test_every_committed_metric_has_words(path):
    names = [m["name"] for stage in json.loads(path.read_text()).values() for m in stage["metrics"]]
    assert names and [n for n in names if metric_names().readable(n) is None] == []


def test_no_word_of_a_list_and_no_place_is_left_over():
    blocks = yaml.safe_load(FILE.read_text())
    lists = blocks.pop("words")
    used = {place for block in blocks.values() for pattern in block for place in PLACE.findall(pattern)}
    assert set(lists) <= used
    for block in blocks.values():
        assert [p for p, words in block.items() if not set(PLACE.findall(words)) <= set(PLACE.findall(p))] == []


def strings():
    """Of library and notebooks every string, and of every string that is filled in an expression of what it becomes."""
    texts = [p.read_text() for p in (REPOSITORY / "lib" / "realm").rglob("*.py")]
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    nodes = [n for text in texts for n in ast.walk(compile(text, "cell", "exec", flags))]
    whole = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    filled = {"".join(v.value if isinstance(v, ast.Constant) else "{}" for v in n.values) for n in nodes if is_f(n)}
    return whole, {expression(text) for text in filled | whole if "{}" in text} - {None}


def is_f(node):
    return isinstance(node, ast.JoinedStr)


def expression(text):
    """None where too little of a name is said, or something else than a name."""
    said = text.replace("{}", "")
    return text.replace("{}", ".+") if len(said) >= 6 and re.fullmatch(r"\w+", said) else None


LISTS = yaml.safe_load(FILE.read_text())["words"]


def made(pattern, whole, expressions):
    """Whether the source holds a name of the pattern, its first words (two at least), or an f-string of it."""
    name = PLACE.sub(lambda place: next(iter(LISTS.get(place[1], {"x": 0}))), pattern)
    words = name.split("_")
    begins = {"_".join(words[:i]) for i in range(2, len(words) + 1)} & whole
    return bool(begins) or name in whole or any(re.fullmatch(e, name) for e in expressions)


def test_every_pattern_is_made_somewhere():
    found = strings()
    assert made("user_turn_perplexity_difference", *found) and made("{speaker}_turn_tokens_mean", *found)
    assert not made("user_turn_parallax_{x}", *found) and not made("two_sample_parallax", *found)
    assert [p for p in metric_names().patterns if not made(p, *found)] == []
