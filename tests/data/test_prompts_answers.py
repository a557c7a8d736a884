"""Answers as tokens: what is learned of a conversation, by hand and by transformers' templates."""

import dataclasses

import numpy as np
import pytest
import tiny_hf
import tiny_llava

from balcap_jax.data.examples import Example, Turn
from balcap_jax.data.prompts.answers import AnswerEncoder
from balcap_jax.data.prompts.processor import Processor, conversation
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder

PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
# As that of Qwen2.5-VL, with marks around what the assistant says.
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}" + PARTS + "<|im_end|>"
    "{% endgeneration %}{% else %}" + PARTS + "<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = CHAT_ML.replace(
    "{% for message in messages %}",
    "{% for message in messages if message['role'] != 'system' %}",
)


@pytest.fixture(scope="module")
def base():
    return dataclasses.replace(Processor.load(policy_folder("base")), chat_template=CHAT_ML)


TURNS = (Turn("Which colour?", "It is red."), Turn("Sure?", "Yes."))


def talk():
    example = tiny_hf.example("talk", (56, 56))
    messages = (
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    )
    return example._replace(messages=messages, reference="A square.", turns=TURNS)


def test_a_conversation_is_that_of_transformers(base):
    example = talk()
    [text] = AnswerEncoder(base, length=512).texts(example, ["A square."])
    messages = [
        *conversation(example),
        *(
            {"role": role, "content": [{"type": "text", "text": words}]}
            for role, words in (
                ("assistant", "A square."), ("user", "Which colour?"), ("assistant", "It is red."),
                ("user", "Sure?"), ("assistant", "Yes."),
            )
        ),
    ]  # fmt: skip
    theirs = base.tokenizer.apply_chat_template(
        messages,
        chat_template=CHAT_ML,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    prompt = base._ids(example)
    newline = base.tokenizer("\n")["input_ids"]
    # Nothing behind the last stop token can matter, so it is not there.
    assert prompt + text.ids + newline == theirs["input_ids"]
    assert [False] * len(prompt) + text.learned + [False] == [
        bool(x) for x in theirs["assistant_masks"]
    ]


def test_no_word_of_the_user_is_learned(base):
    """By hand: which pieces are learned, and that each answer's stop token is."""
    [text] = AnswerEncoder(base, length=512).texts(talk(), ["A square."])
    pieces, learned = [[]], [True]
    for token, of_answer in zip(text.ids, text.learned, strict=True):
        if of_answer != learned[-1]:
            pieces.append([])
            learned.append(of_answer)
        pieces[-1].append(token)
    decoded = [base.tokenizer.decode(piece) for piece in pieces]
    assert decoded == [
        "A square.<|im_end|>",
        "\n<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n",
        "It is red.<|im_end|>",
        "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
        "Yes.<|im_end|>",
    ]
    assert learned == [True, False, True, False, True]


def test_llava_ends_every_answer_though_its_template_does_not(tmp_path):
    tiny_llava.write_processor(tmp_path)
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: "
        "{% endif %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
        "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    processor = dataclasses.replace(Processor.load(tmp_path), chat_template=template)
    example = tiny_hf.example("talk", (8, 8))._replace(
        reference="a square", turns=(Turn("describe the", "red square ."),)
    )
    [text] = AnswerEncoder(processor, length=64).texts(example, ["a square"])
    words = processor.tokenizer.convert_ids_to_tokens(text.ids)
    expected = [
        ("a", 1), ("square", 1), ("<stop>", 1), ("USER", 0), (":", 0), ("describe", 0), ("the", 0),
        ("ASSISTANT", 0), (":", 0), ("red", 1), ("square", 1), (".", 1), ("<stop>", 1),
    ]  # fmt: skip
    assert list(zip(words, map(int, text.learned), strict=True)) == expected


def test_captions_share_a_prompt_and_padding_is_not_learned(base):
    encoder = AnswerEncoder(base, length=64)
    one = encoder.texts(tiny_hf.example("1", (56, 56)), ["A red square.", "Red."])
    two = encoder.texts(tiny_hf.example("2", (56, 56)), ["A circle."])
    tokens, mask = encoder.pad([one, two])
    longest = max(len(text.ids) for text in (*one, *two))
    assert tokens.shape == (2, 2, -(-longest // 16) * 16)
    assert mask.sum() == sum(len(text.ids) for text in (*one, *two))
    assert not mask[1, 1].any()
    assert (tokens[~mask] == base.pad_token_id).all()
    stops = tokens[mask.nonzero()][np.cumsum([len(t.ids) for t in (*one, *two)]) - 1]
    assert (stops == base.stop_tokens[0]).all()

    [cut] = AnswerEncoder(base, length=3).texts(tiny_hf.example("1", (56, 56)), ["A red square."])
    assert len(cut.ids) == 3
    assert base.stop_tokens[0] not in cut.ids  # it does not learn to end there


def test_what_cannot_be_learned_is_one_sentence(base):
    encoder = AnswerEncoder(base, length=64)
    example = tiny_hf.example("photo", (56, 56))
    with pytest.raises(UserError, match="'photo' has no answer to learn"):
        encoder.texts(example, [" "])
    with pytest.raises(UserError, match=r"'photo' has an answer with <\|endoftext\|>"):
        encoder.texts(example, ["A<|endoftext|>B"])
    silent = AnswerEncoder(dataclasses.replace(base, chat_template=NO_SYSTEM), length=64)
    encoder.check(talk())
    with pytest.raises(UserError, match="has a system turn .'Be brief.'., which the chat template"):
        silent.check(talk())
    refusing = CHAT_ML.replace(
        "{% for message in messages %}",
        "{% if messages | selectattr('role', 'equalto', 'system') | list %}"
        "{{ raise_exception('no system turns here') }}{% endif %}{% for message in messages %}",
    )
    strict = AnswerEncoder(dataclasses.replace(base, chat_template=refusing), length=64)
    with pytest.raises(UserError, match="'talk' has a conversation that .*no system turns here"):
        strict.check(talk())
    first_only = CHAT_ML.replace(
        "{% for message in messages %}", "{% for message in messages[:2] %}"
    )
    short = AnswerEncoder(dataclasses.replace(base, chat_template=first_only), length=64)
    with pytest.raises(UserError, match="does not show all"):
        short.texts(talk(), ["A square."])


def test_several_images_are_as_transformers_cuts_them(base):
    first, second = tiny_hf.example("a", (56, 56), seed=1), tiny_hf.example("b", (84, 56), seed=2)
    both = Example(
        "both",
        first.image,
        "",
        "Yes.",
        messages=(
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}],
            },
        ),
        more_images=(second.image,),
    )
    row = base.row(both)
    each = [base.row(example).images for example in (first, second)]
    np.testing.assert_array_equal(
        row.images.pixels, np.concatenate([images.pixels for images in each])
    )
    sizes = [len(images.pixels) for images in each]
    np.testing.assert_array_equal(row.images.image_ids, np.repeat([0, 1], sizes))
    placeholders = (row.tokens == base.config.image_token_id).sum()
    assert placeholders == sum(sizes) // base.image_processor.merge_size**2
    with pytest.raises(UserError, match="1 image placeholders for 2 images|2 images"):
        base.row(both._replace(messages=(), prompt="What?"))


def test_template_of_the_base_policy_takes_conversations():
    processor = Processor.load(policy_folder("base"))
    [text] = AnswerEncoder(processor, length=128).texts(talk(), ["A square."])
    assert sum(text.learned) < len(text.ids)
