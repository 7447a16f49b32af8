"""Chat templates of several kinds, a small tokenizer, and what is supervised with them."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from g2is_ray.chat.encoder import IGNORED, ChatEncoder

CHATML = (  # SmolLM2's: a system prompt of its own where the conversation has none
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
LAST_TURN_ENDS = (  # breaks the prefixes: only the last turn has <|endoftext|>
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}"
    "{% if loop.last and not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # like Qwen3's: a thinking block in the last turn, none in earlier ones
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% set text = message['content'].split('</think>')[-1] | trim %}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{% if '</think>' in message['content'] %}{{ message['content'] }}"
    "{% else %}{{ '<think>\n\n</think>\n\n' + text }}{% endif %}"
    "{% else %}{{ text }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (  # no generation prompt, blanks around the content, strict about the order
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "<|eot_id|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>"]


def make_tokenizer(
    template, *, trim_offsets=False, bos="<s>", eos="<|im_end|>", added=(), swallowing=()
):
    """A byte-level BPE tokenizer with few merges, so that most characters are tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the assistant said yes to the user"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    tokenizer.add_tokens(list(added))
    tokenizer.add_tokens(
        [AddedToken(one, rstrip=True, special=True) for one in swallowing], special_tokens=True
    )
    tokenizer.chat_template = template
    return tokenizer


def conversation(*contents, system=None):
    """Contents in turn the user's and the assistant's."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


def supervised(encoder, messages):
    """Text of each run of supervised tokens."""
    encoded = encoder.encode(messages)
    runs, run = [], []
    for token, label in zip([*encoded.input_ids, 0], [*encoded.labels, IGNORED], strict=True):
        if label != IGNORED:
            assert label == token
            run.append(token)
        elif run:
            runs.append(encoder.tokenizer.decode(run))
            run = []
    return runs


def encoder_for(template, max_tokens=4096, end_tokens=(), **options):
    tokenizer = make_tokenizer(template, **options)
    return ChatEncoder(tokenizer, max_tokens=max_tokens, end_tokens=end_tokens)
