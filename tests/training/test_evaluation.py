"""Evaluation: transformers' own loss, and exact match that is right by construction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from g2is_ray.chat.conversation import Conversation
from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import EvaluateSettings, LoraSettings, ModelSettings
from g2is_ray.models.loading import add_adapter, load_base, load_tokenizer, lora_parameters
from g2is_ray.training.evaluation import Evaluation, final_answer

TEST = Path(__file__).parents[2] / "examples" / "data" / "target-gsm8k-test.jsonl"
MAX_TOKENS, NEW_TOKENS = 256, 12


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She earns $20 a day.\n#### 120", "120"),
        ("#### 1,234", "1234"),
        ("first #### 3 then\n#### 4", "4"),
        ("#### 72 dollars", "72"),
        ("####", ""),
        ("So the answer is 72.", "72"),
        ("The answer is: 3.5.", "3.5"),
        ("THE ANSWER IS (B).\n", "(b)"),
        ("The answer is 1.\nNo, the answer is 2.", "2"),
        ("The answer is Paris.\nThat is all.", "paris"),
        ("SELECT  name\nFROM t WHERE x = 1;", "select name from t where x = 1"),
        ("72", "72"),
        ("72.", "72"),
        ("", ""),
    ],
)
def test_the_final_answer_is_what_is_compared(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("Thus 60 x 2 = 120.\n#### 120", "120"),
        ("Thus 60 x 20 = 1,200.\n#### 1,200", "1200"),
        ("select a from b", "SELECT a FROM b;"),
        ("I think the answer is b.", "B"),
    ],
)
def test_a_right_reply_equals_the_answer_it_is_compared_with(reply, wanted):
    assert final_answer(reply) == final_answer(wanted)


@pytest.mark.parametrize(("reply", "wanted"), [("#### 12", "120"), ("#### -12", "12"), ("", "12")])
def test_a_wrong_reply_does_not(reply, wanted):
    assert final_answer(reply) != final_answer(wanted)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(ModelSettings(model=tiny_model))


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_base(ModelSettings(model=tiny_model), torch.device("cpu"))


@pytest.fixture(scope="module")
def rows():
    found = [json.loads(line) for line in TEST.read_text().splitlines()[:6]]
    return [
        {**Conversation.of(row["messages"]).columns(), "answer": row["answer"]} for row in found
    ]


@pytest.fixture
def evaluation(tokenizer):
    def make(rows, token_budget=2048, **settings):
        given = EvaluateSettings(**({"max_new_tokens": NEW_TOKENS} | settings))
        return Evaluation(
            tokenizer, rows, max_tokens=MAX_TOKENS, settings=given, token_budget=token_budget
        )

    return make


def transformers_loss(model, tokenizer, rows):
    """Mean over all supervised tokens of the rows, each row by itself."""
    encoder = ChatEncoder(tokenizer, max_tokens=MAX_TOKENS)
    total, count = 0.0, 0
    for row in rows:
        one = encoder.encode(row["messages"])
        with torch.no_grad():
            loss = model(
                input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])
            ).loss
        total += float(loss) * one.supervised_tokens
        count += one.supervised_tokens
    return total / count, count


@pytest.mark.parametrize("token_budget", [1, 700, 100_000])
def test_the_loss_is_transformers_own_whatever_the_batch(
    token_budget, evaluation, model, tokenizer, rows
):
    found = evaluation(rows, token_budget, exact_match_rows=0).measure(model).facts()
    loss, tokens = transformers_loss(model, tokenizer, rows)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["test_tokens"] == tokens


def test_an_adapter_is_measured_with_its_effect(evaluation, tiny_model, tokenizer, rows):
    base = load_base(ModelSettings(model=tiny_model), torch.device("cpu"))
    before = evaluation(rows, exact_match_rows=0).measure(base).facts()["loss"]
    tuned = add_adapter(base, LoraSettings(lora_r=4), 0)
    for parameter in lora_parameters(tuned).values():
        torch.nn.init.constant_(parameter, 0.05)
    found = evaluation(rows, exact_match_rows=0).measure(tuned).facts()["loss"]
    assert found == pytest.approx(transformers_loss(tuned.eval(), tokenizer, rows)[0], rel=1e-5)
    assert abs(found - before) > 1e-3


def test_measuring_leaves_the_model_as_it_was(evaluation, model, tokenizer, rows):
    before = transformers_loss(model, tokenizer, rows)
    evaluation(rows, exact_match_rows=1).measure(model).facts()
    assert transformers_loss(model, tokenizer, rows) == before


def greedy_reply(model, tokenizer, messages):
    """Token by token, by argmax, without transformers' generate."""
    ids = ChatEncoder(tokenizer, max_tokens=MAX_TOKENS).encode_prompt(messages)
    ends = torch.tensor(model.generation_config.eos_token_id).flatten().tolist()
    written = []
    while len(written) < NEW_TOKENS and not (written and written[-1] in ends):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + written])).logits
        written.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("token_budget", [1, 100_000])
def test_a_reply_right_by_construction_matches(token_budget, evaluation, model, tokenizer, rows):
    replies = [greedy_reply(model, tokenizer, row["messages"]) for row in rows]
    asked = [row | {"answer": reply} for row, reply in zip(rows, replies, strict=True)]
    asked[1]["answer"] += " and more"
    asked[2]["answer"] = None
    found = evaluation(asked, token_budget).measure(model)
    np.testing.assert_array_equal(found.right, [1, 0, np.nan, 1, 1, 1])
    assert found.facts()["exact_match_rows"] == 5
    assert found.facts()["exact_match"] == pytest.approx(4 / 5)


def test_scores_of_rows_are_those_of_each_row_alone(evaluation, model, rows):
    found = evaluation(rows, 700, exact_match_rows=0).measure(model)
    alone = [evaluation([row], exact_match_rows=0).measure(model) for row in rows]
    assert found.losses == pytest.approx([one.losses[0] for one in alone], rel=1e-5)
    assert found.tokens.tolist() == [one.tokens[0] for one in alone]


@pytest.mark.parametrize(("limit", "measured"), [(0, 0), (2, 2), (99, 6)])
def test_exact_match_is_taken_of_the_first_rows(limit, measured, evaluation, model, rows):
    found = evaluation(rows, exact_match_rows=limit, max_new_tokens=1).measure(model).facts()
    assert found["exact_match_rows"] == measured
    assert (found["exact_match"] is None) == (measured == 0)


def test_rows_without_answers_have_no_exact_match(evaluation, model, rows):
    found = evaluation([row | {"answer": None} for row in rows]).measure(model).facts()
    assert found["exact_match"] is None
    assert found["exact_match_rows"] == 0


def test_what_was_cut_is_counted(evaluation, model, tokenizer, rows):
    ends = [greedy_reply(model, tokenizer, row["messages"]) for row in rows]
    replies = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ends]
    found = evaluation(rows, exact_match_rows=3).measure(model).facts()
    assert found["cut_replies"] == sum(len(reply) >= NEW_TOKENS for reply in replies[:3])
    assert found["cut_rows"] == 0
    encoder = ChatEncoder(tokenizer, max_tokens=999)
    lengths = [len(encoder.encode(row["messages"]).input_ids) for row in rows]
    short = Evaluation(
        tokenizer,
        rows,
        max_tokens=max(lengths) - 1,
        settings=EvaluateSettings(exact_match_rows=0),
        token_budget=512,
    )
    cut = short.measure(model).facts()["cut_rows"]
    assert cut == lengths.count(max(lengths)) > 0
