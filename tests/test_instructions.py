"""Task pools, instructions and labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from emollama.data.instructions import BUILT_IN, TASK_NAMES, TaskPool, check_labels, user_text

DRAWS = 6000


def shares(pool):
    """task -> its share in many seeded samples."""
    rng = np.random.default_rng(0)
    counts = Counter(pool.draw(rng)[0] for _ in range(DRAWS))
    return {task: counts[task] / DRAWS for task in pool.tasks}


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (["emotion", "reason", "emotion", "emotion"], {"emotion": 0.75, "reason": 0.25}),
        ({"emotion": 3, "reason": 1}, {"emotion": 0.75, "reason": 0.25}),
        ({"reason": 0.3, "emotion": 1}, {"reason": 0.3 / 1.3, "emotion": 1 / 1.3}),
        (["emotion", "reason", "reason_v2"], {"emotion": 1 / 3, "reason": 1 / 3, "reason_v2": 1 / 3}),
        ("reason", {"reason": 1.0}),
        ({"emotion": 0, "reason": 2}, {"reason": 1.0}),
    ],
)
def test_tasks_are_sampled_by_their_weights(pool, expected):
    proportions = shares(TaskPool(pool, {}, ["happy"]))
    assert set(proportions) == set(expected)
    for task, share in expected.items():
        assert proportions[task] == pytest.approx(share, abs=4 * (0.25 / DRAWS) ** 0.5)


def test_instructions_of_a_task_are_sampled_evenly_and_only_for_that_task():
    pool = TaskPool(["emotion", "reason"], {"emotion": ["a", "b", "c"], "reason": ["d"]}, ["happy"])
    rng = np.random.default_rng(0)
    counts = Counter(pool.draw(rng) for _ in range(DRAWS))
    assert set(counts) == {("emotion", "a"), ("emotion", "b"), ("emotion", "c"), ("reason", "d")}
    for instruction in "abc":
        assert counts["emotion", instruction] / DRAWS == pytest.approx(1 / 6, abs=0.025)


def test_a_sampled_task_and_instruction_depend_only_on_the_generator():
    pool = TaskPool(["emotion", "reason"], {}, ["happy"])
    draws = [[pool.draw(np.random.default_rng([3, k])) for k in range(50)] for _ in range(2)]
    assert draws[0] == draws[1] and len(set(draws[0])) > 5


def test_different_tasks_are_drawn_one_after_the_other_by_their_weights():
    pool = TaskPool({"emotion": 3, "reason": 1, "reason_v2": 1}, {}, ["happy"])
    rng = np.random.default_rng(0)
    draws = [[task for task, _ in pool.draw_different(rng, 2)] for _ in range(DRAWS)]
    assert all(len(set(tasks)) == 2 for tasks in draws)
    first, both = Counter(tasks[0] for tasks in draws), Counter(task for tasks in draws for task in tasks)
    assert first["emotion"] / DRAWS == pytest.approx(0.6, abs=0.025)
    # Emotion is first, or second after one of the two others: 3/4 of the remaining weight.
    assert both["emotion"] / DRAWS == pytest.approx(0.6 + 0.4 * 0.75, abs=0.025)


def test_one_different_task_is_that_of_a_single_draw():
    pool = TaskPool(["emotion", "reason", "reason_v2"], {}, ["happy"])
    for k in range(20):
        assert pool.draw_different(np.random.default_rng(k), 1) == [pool.draw(np.random.default_rng(k))]


def test_labels_are_inserted_in_order_and_other_braces_remain():
    instruction = 'One of {labels}? Answer as {"label": {}} or {x}; again: {labels}'
    pool = TaskPool("emotion", {"emotion": [instruction]}, ["happy", "sad"])
    assert pool.first_instruction("emotion") == 'One of happy, sad? Answer as {"label": {}} or {x}; again: happy, sad'


def test_the_first_instruction_is_the_first_of_the_list():
    pool = TaskPool(["emotion", "reason"], {"emotion": ["one", "two"]}, ["happy"])
    assert pool.first_instruction("emotion") == "one"
    assert pool.first_instruction("reason") == BUILT_IN["reason"][0]


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_built_in_task_has_several_different_instructions(task):
    assert len(set(BUILT_IN[task])) == len(BUILT_IN[task]) >= 2


def test_every_built_in_emotion_instruction_has_the_labels_placeholder_and_no_other_brace():
    for instruction in BUILT_IN["emotion"]:
        assert "{labels}" in instruction and "{" not in instruction.replace("{labels}", "")


@pytest.mark.parametrize(
    ("pool", "wordings", "message"),
    [
        (["emotions"], {}, "task_pool: unknown task 'emotions'. Did you mean 'emotion'? Known: emotion, reason, reason_v2"),
        ("joy", {}, "task_pool: unknown task 'joy'"),
        (["emotion"], {"reson": ["x"]}, "instructions: unknown task 'reson'. Did you mean 'reason'?"),
        ([], {}, "task_pool contains no task with a positive weight"),
        ({}, {}, "task_pool contains no task with a positive weight"),
        ({"emotion": 0}, {}, "task_pool contains no task with a positive weight"),
        ({"emotion": -1}, {}, "task_pool: the weight of 'emotion' is -1"),
        ({"emotion": float("nan")}, {}, "task_pool: the weight of 'emotion' is nan"),
        ({"emotion": float("inf")}, {}, "task_pool: the weight of 'emotion' is inf"),
        ({"emotion": True}, {}, "task_pool: the weight of 'emotion' is True"),
        ({"emotion": "1"}, {}, "task_pool: the weight of 'emotion' is '1'"),
        ({"emotion": None}, {}, "task_pool: the weight of 'emotion' is None"),
        (["emotion"], {"emotion": []}, "instructions: 'emotion' has no instruction"),
    ],
)
def test_an_invalid_task_pool_is_refused_with_key_and_task(pool, wordings, message):
    with pytest.raises(ValueError) as error:
        TaskPool(pool, wordings, ["happy"])
    assert message in str(error.value)


@pytest.mark.parametrize("label", ["", "  ", " happy", "happy ", "a,b", "{x}", "[INST]", "<s>", "a\nb", "a\tb", "a\rb"])
def test_a_label_that_would_break_the_prompt_is_refused(label):
    with pytest.raises(ValueError, match="labels: the label .* would break the prompt"):
        check_labels(["sad", label], "labels")


def test_a_repeated_label_is_rejected():
    with pytest.raises(ValueError, match="prompt_labels: .* contains a label twice"):
        check_labels(["sad", "happy", "sad"], "prompt_labels")


@pytest.mark.parametrize("label", ["happy", "positive surprise", "très-heureux", "开心", "a/b"])
def test_a_label_of_words_in_any_language_is_accepted(label):
    check_labels([label], "labels")


def test_the_user_text_has_two_spaces_before_the_tag_only_after_a_sentence():
    assert user_text("reason", "Why?", "Go") == "The person in video says: Go.  [reason] Why? "
    assert user_text("reason", "Why?", "") == "The person in video says: .  [reason] Why? "
    assert user_text("reason", "Why?", None) == "[reason] Why? "
