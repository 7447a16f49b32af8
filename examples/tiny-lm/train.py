"""Trains the tiny language model of this folder from scratch, on the CPU.

    python train.py --pool POOL.jsonl.gz --output FOLDER

POOL holds one JSON object a line: `{"id", "source", "domain", "messages"}`. Only the sources in
`SOURCES` are read. The output loads with `AutoTokenizer` and `AutoModelForCausalLM`, offline.
"""

import argparse
import copy
import gzip
import json
import logging
import math
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

logger = logging.getLogger("tiny-lm")

# The sources of the pool to learn from, an allow-list. Left out:
# - for their license, non-commercial: alpaca, alpaca-gpt4-zh;
# - for their license, share-alike, at least upstream: arc-easy, arc-challenge, boolq, spider,
#   cot-ecqa, cot-sensemaking;
# - so that tuning on a selection has something to teach: gsm8k, wikisql, tatqa (and spider).
SOURCES = frozenset(
    {
        "codegen",
        "toolformer",
        "roleplay",
        "cot-aqua",
        "cot-creak",
        "cot-qasc",
        "cot-strategyqa",
        "openbookqa",
    }
)

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MAX_POSITIONS = 1024
EVALUATION_BATCH = 8  # blocks


def read_rows(path: Path, sources: frozenset[str] | None = None) -> list[dict]:
    """The rows of a `.jsonl` or `.jsonl.gz` file, of the named sources alone if any are named."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if sources is None or row["source"] in sources]


def split_rows(
    rows: list[dict], held_out: float, rng: random.Random
) -> tuple[list[dict], list[dict]]:
    """Rows to train on and rows to validate on, drawn at random over all sources."""
    rows = rng.sample(rows, len(rows))
    count = round(len(rows) * held_out)
    return rows[count:], rows[:count]


def train_tokenizer(rows: list[dict], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template; every digit is a token of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((turn["content"] for row in rows for turn in row["messages"]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with grouped-query attention and tied embeddings, about 3.6 M parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def render(tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> list[list[int]]:
    """Token ids of each row, through the chat template."""
    texts = tokenizer.apply_chat_template([row["messages"] for row in rows], tokenize=False)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def pack(token_ids: list[list[int]], block_tokens: int) -> torch.Tensor:
    """Rows laid end to end and cut into blocks [block, block_tokens]; the remainder is dropped."""
    stream = torch.tensor([token for row in token_ids for token in row])
    return stream[: len(stream) // block_tokens * block_tokens].view(-1, block_tokens)


@torch.no_grad()
def loss_per_token(model: LlamaForCausalLM, blocks: torch.Tensor) -> float:
    """Mean negative log-likelihood over all tokens but the first of each block, in nats."""
    model.eval()
    total = sum(
        model(input_ids=batch, labels=batch).loss.item() * len(batch)
        for batch in blocks.split(EVALUATION_BATCH)
    )
    model.train()
    return total / len(blocks)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes model (bfloat16) and tokenizer; a reader finds every file whole, old or new."""
    unfinished = output / ".unfinished"
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    make_portable(unfinished / "tokenizer_config.json")
    for path in unfinished.iterdir():
        path.replace(output / path.name)
    shutil.rmtree(unfinished)


def make_portable(tokenizer_config: Path) -> None:
    """Names the tokenizer class as transformers 4 and 5 both know it."""
    config = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    tokenizer_config.write_text(text + "\n", encoding="utf-8")


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to a tenth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    training: list[list[int]],
    validation: torch.Tensor,
    args: argparse.Namespace,
    rng: random.Random,
) -> None:
    """Trains `model` in place and saves it `args.saves` times over, the last time finished."""
    blocks_per_epoch = sum(map(len, training)) // args.block_tokens
    steps_per_epoch = blocks_per_epoch // args.batch_blocks
    steps = args.max_steps or args.epochs * steps_per_epoch
    save_every = max(1, math.ceil(steps / args.saves))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, steps, args.warmup_steps)
    )
    logger.info("%d epochs of %d steps, %d in all", args.epochs, steps_per_epoch, steps)

    step, losses, started = 0, [], time.monotonic()
    while step < steps:
        # Rows are packed anew, in another order, so that no block is seen twice.
        blocks = pack(rng.sample(training, len(training)), args.block_tokens)
        for batch in blocks.split(args.batch_blocks)[:steps_per_epoch]:
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if step % args.log_every == 0 or step == steps:
                seconds = time.monotonic() - started
                logger.info(
                    "step %d/%d loss %.4f learning rate %.2e %.0f tokens/s %.0f s",
                    step,
                    steps,
                    sum(losses) / len(losses),
                    scheduler.get_last_lr()[0],
                    step * args.batch_blocks * args.block_tokens / seconds,
                    seconds,
                )
                losses.clear()
            if step % save_every == 0 or step == steps:
                save(model, tokenizer, args.output)
                logger.info(
                    "step %d/%d validation loss %.4f, saved",
                    step,
                    steps,
                    loss_per_token(model, validation),
                )
            if step == steps:
                break


def evaluate_saved(output: Path, evaluation: dict[str, torch.Tensor]) -> None:
    """Logs the loss of the weights as they lie in the output folder, rounded to bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    for name, part in evaluation.items():
        logger.info(
            "saved model: loss %.4f a token on %s (%d tokens)",
            loss_per_token(model, part),
            name,
            part.numel(),
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=Path, required=True, help="rows to learn from, .jsonl or .jsonl.gz")
    add("--output", type=Path, required=True, help="folder for model and tokenizer")
    add("--compare", type=Path, nargs="*", default=[], help="more files to measure the loss on")
    add("--epochs", type=int, default=3, help="passes over the training rows")
    add("--max-steps", type=int, help="stop after so many steps instead, to try things out")
    add("--seed", type=int, default=0, help="of the split, the weights and the order of rows")
    add("--threads", type=int, default=1, help="CPU threads; another number, other rounding")
    add("--vocab-size", type=int, default=6144, help="tokens, the three special ones included")
    add("--block-tokens", type=int, default=512, help="tokens in a packed block")
    add("--batch-blocks", type=int, default=4, help="blocks in a step")
    add("--learning-rate", type=float, default=2e-3, help="at its peak")
    add("--warmup-steps", type=int, default=100, help="steps up to the peak")
    add("--held-out", type=float, default=0.02, help="share of the rows kept for validation")
    add("--saves", type=int, default=10, help="how often to save along the way")
    add("--log-every", type=int, default=20, help="steps between two lines")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)

    rows = read_rows(args.pool, SOURCES)
    training_rows, validation_rows = split_rows(rows, args.held_out, rng)
    for source, count in sorted(Counter(row["source"] for row in training_rows).items()):
        logger.info("%s: %d rows to train on", source, count)

    tokenizer = train_tokenizer(training_rows, args.vocab_size)
    model = build_model(tokenizer)
    training = render(tokenizer, training_rows)
    validation = pack(render(tokenizer, validation_rows), args.block_tokens)
    evaluation = {"validation": validation} | {
        path.name: pack(render(tokenizer, read_rows(path)), args.block_tokens)
        for path in args.compare
    }
    logger.info(
        "%d rows, %d tokens to train on; %d rows, %d tokens to validate on; %d parameters",
        len(training),
        sum(map(len, training)),
        len(validation_rows),
        validation.numel(),
        model.num_parameters(),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, args.output)  # a folder that cannot be written fails now, not later
    train(model, tokenizer, training, validation, args, rng)
    evaluate_saved(args.output, evaluation)


if __name__ == "__main__":
    main()
