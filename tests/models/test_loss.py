"""The loss at supervised positions, a chunk of logits at a time."""

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, examples
from transformers import AutoModelForCausalLM

from g2is_ray.models.batches import Batch
from g2is_ray.models.loss import SupervisedLoss

CPU = torch.device("cpu")


def model_of(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunks_do_not_change_sums_or_gradients(name):
    batch, found = Batch.of(examples(4), 0, CPU), []
    for logits in (10**6, 3 * VOCABULARY):
        model = model_of(name)
        loss = SupervisedLoss(model, max_logits=logits)
        means = loss.backward(batch, loss.hidden_states(batch))
        gradient = model.get_input_embeddings().weight.grad
        with torch.no_grad():
            found.append((loss.sums(batch), means, gradient))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-6)


def test_the_output_layer_sees_no_more_than_a_chunk_of_supervised_positions():
    model, seen = model_of(next(iter(ARCHITECTURES))), []
    batch = Batch.of(examples(4), 0, CPU)
    loss = SupervisedLoss(model, max_logits=3 * VOCABULARY)
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2]))
    loss.backward(batch, loss.hidden_states(batch))
    assert max(seen) == 3
    assert sum(seen) == len(batch.targets_n)


def test_the_model_is_left_as_it_was():
    model = model_of(next(iter(ARCHITECTURES)))
    ids = torch.tensor([examples(1)[0].input_ids])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        SupervisedLoss(model).sums(Batch.of(examples(2), 0, CPU))
        torch.testing.assert_close(model(input_ids=ids).logits, before)
