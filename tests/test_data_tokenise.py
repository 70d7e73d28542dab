"""Supervised tokens are exactly what the assistant says, its end-of-turn token included, by real templates."""

from __future__ import annotations

import pytest
from data_helpers import make_tokenizer, supervised_texts, template

from idealmix.data.conversation import Conversation
from idealmix.data.spans import assistant_spans
from idealmix.data.tokenise import IGNORED, PLAIN_TEMPLATE, Encoder
from idealmix.errors import InputError


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "It is 4."}
# The answers also stand in the prompts, hold blank lines, and begin and end alike: a text search would go wrong.
TURNS = [
    SYSTEM,
    user("What is 2 + 2?\n\nIt is 4."),
    assistant("It is 4."),
    user("It is 4."),
    assistant("4\n\nIt is 4.\n\n0"),
    user("Thanks. 0"),
    assistant("It is 4."),
]
CALL = {
    "role": "assistant",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Paris"}},
        }
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where."}},
            },
        },
    }
]
TOOL_TURNS = [
    user("The weather in Paris?"),
    CALL,
    {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sunny"},
    assistant("sunny"),
    user("Thanks."),
    assistant("The weather in Paris is sunny."),
]
THINK = "<think>\n\n</think>\n\n"  # Qwen3 writes it into the last turn alone, and expects the model to
#: template -> (what ends a turn, what stands before the last turn's content, what ends the last turn)
REAL = {
    "qwen2_5": ("<|im_end|>", "", "<|im_end|>"),
    "qwen3": ("<|im_end|>", THINK, "<|im_end|>"),
    "llama3_1": ("<|eot_id|>", "", "<|eot_id|>"),
    "gemma3": ("<end_of_turn>", "", "<end_of_turn>"),
    "phi3": ("<|end|>", "", "<|end|>\n<|endoftext|>"),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", "", "<｜end▁of▁sentence｜>"),
    "cohere": ("<|END_OF_TURN_TOKEN|>", "", "<|END_OF_TURN_TOKEN|>"),
    "gptoss": ("<|end|>", "", "<|return|>"),
    "llama3": ("<|eot_id|>", "", "<|eot_id|>"),
}


def encoder_of(name: str, max_length: int = 4000) -> Encoder:
    ends = REAL.get(name, ("", "", "<|endoftext|>"))[2]
    eos = "<|endoftext|>" if name == "phi3" else ends  # pad = eos = the end-of-turn token
    return Encoder(make_tokenizer(template(name), eos=eos, bos="<bos>"), max_length)


@pytest.mark.parametrize("name", REAL)
def test_multi_turn_labels_are_the_assistants_words(name):
    encoder = encoder_of(name)
    encoded = encoder.encode(Conversation("a", TURNS))
    end, before, last_end = REAL[name]
    head = "<|channel|>final<|message|>" if name == "gptoss" else ""
    said = [message["content"] for message in TURNS if message["role"] == "assistant"]
    expected = [f"{head}{text}{end}" for text in said[:-1]] + [f"{head}{before}{said[-1]}{last_end}"]
    assert supervised_texts(encoded, encoder.tokenizer) == expected
    assert (
        encoded.input_ids
        == encoder.tokenizer(
            encoder.tokenizer.apply_chat_template(TURNS, tokenize=False), add_special_tokens=False
        )["input_ids"]
    )
    assert encoder.warnings == []


@pytest.mark.parametrize(
    ("name", "call", "before", "end"),
    [
        (
            "qwen2_5",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
            "",
            "<|im_end|>",
        ),
        (
            "qwen3",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
            THINK,
            "<|im_end|>",
        ),
        ("llama3_1", '{"name": "weather", "parameters": {"city": "Paris"}}', "", "<|eot_id|>"),
        (
            "qwen3_5_nothink",  # the generation prompt's <think> and the turn's <tool_call> share their first letters
            "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
            "",
            "<|im_end|>",
        ),
    ],
)
def test_tool_calls_are_supervised_and_results_are_not(name, call, before, end):
    encoder = encoder_of(name)
    encoded = encoder.encode(Conversation("a", TOOL_TURNS, TOOLS))
    assert supervised_texts(encoded, encoder.tokenizer) == [
        f"{call}{end}",
        f"sunny{end}",
        f"{before}The weather in Paris is sunny.{end}",
    ]
    assert '"description"' in encoder.tokenizer.decode(encoded.input_ids)


@pytest.mark.parametrize("name", ["qwen2_5", "phi3", "gemma3", "llama3"])
def test_markers_are_followed(name):
    tokenizer = encoder_of(name).tokenizer
    left = Encoder(tokenizer, 4000).encode(Conversation("a", TURNS))
    tokenizer.chat_template = template(f"{name}_training")
    right = Encoder(tokenizer, 4000).encode(Conversation("a", TURNS))
    assert left.input_ids == right.input_ids
    # trl's templates put white space around the turns into their markers; the words are the same
    texts = [supervised_texts(each, tokenizer) for each in (left, right)]
    assert [text.strip() for text in texts[0]] == [text.strip() for text in texts[1]]


def test_an_end_token_outside_of_the_markers_is_supervised_all_the_same():
    encoder = Encoder(
        make_tokenizer(
            "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
            "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}",
            eos="<|end|>",
        ),
        400,
    )
    encoder.tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    encoder = Encoder(encoder.tokenizer, 400)
    encoded = encoder.encode(Conversation("a", [user("a"), assistant("b"), user("c"), assistant("d")]))
    assert supervised_texts(encoded, encoder.tokenizer) == ["b<|end|>", "d<|end|>"]


def test_a_system_text_that_moves_to_the_last_user_turn():
    encoder = Encoder(
        make_tokenizer(
            "{% for m in messages %}{% if m.role == 'user' %}[INST]"
            "{% if loop.revindex <= 2 and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
            "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            eos="</s>",
        ),
        400,
    )
    encoded = encoder.encode(Conversation("a", TURNS))
    assert supervised_texts(encoded, encoder.tokenizer) == [
        f"{message['content']}</s>" for message in TURNS if message["role"] == "assistant"
    ]


def test_reasoning_that_later_turns_drop():
    encoder = encoder_of("qwen3")
    turns = [
        user("2 + 2?"),
        {**CALL, "content": "<think>\nI call.\n</think>\n\nWait."},
        {"role": "tool", "content": "4"},
        assistant("<think>\nIt is 4.\n</think>\n\n4"),
        user("Thanks."),
        assistant("Welcome."),
    ]
    texts = supervised_texts(encoder.encode(Conversation("a", turns)), encoder.tokenizer)
    assert texts[0].startswith("Wait.\n<tool_call>")
    assert texts[1:] == ["4<|im_end|>", f"{THINK}Welcome.<|im_end|>"]


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_plain_template_where_the_tokenizer_has_none(bos):
    tokenizer = make_tokenizer(None, eos="<eos>", bos=bos)
    encoder = Encoder(tokenizer, 400)
    encoded = encoder.encode(
        Conversation("a", [SYSTEM, user("Hi"), assistant("Hello.\n"), user("?"), assistant("!")])
    )
    assert tokenizer.decode(encoded.input_ids) == (
        "### System:\nIt is 4.\n\n### User:\nHi\n\n### Assistant:\nHello.\n<eos>\n\n"
        "### User:\n?\n\n### Assistant:\n!<eos>\n\n"
    )
    assert supervised_texts(encoded, tokenizer) == ["Hello.\n<eos>", "!<eos>"]
    assert "plain template" in encoder.warnings[0]
    assert "### " in PLAIN_TEMPLATE
    with pytest.raises(InputError, match="no tool calls"):
        encoder.encode(Conversation("b", TOOL_TURNS, TOOLS))


def test_bos_is_never_doubled():
    from tokenizers.processors import TemplateProcessing

    for chat_template in (template("llama3_1"), None):
        tokenizer = make_tokenizer(chat_template, eos="<|eot_id|>", bos="<|begin_of_text|>")
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
        )
        encoded = Encoder(tokenizer, 400).encode(Conversation("a", [user("Hi"), assistant("Hello")]))
        assert encoded.input_ids[0] == tokenizer.bos_token_id
        assert encoded.input_ids.count(tokenizer.bos_token_id) == 1


def test_raw_text_is_supervised_whole_with_an_end():
    encoder = Encoder(make_tokenizer(template("qwen2_5"), eos="<|im_end|>"), 400)
    encoded = encoder.encode(Conversation("a", [], None, "The weather."))
    assert supervised_texts(encoded, encoder.tokenizer) == ["The weather.<|im_end|>"]
    assert encoded.supervised == len(encoded.input_ids) - 1


def test_cut_at_the_end_and_counted_from_position_one():
    whole = encoder_of("qwen2_5").encode(Conversation("a", TURNS))
    cut = encoder_of("qwen2_5", 60).encode(Conversation("a", TURNS))
    assert (whole.truncated, cut.truncated) == (False, True)
    assert cut.input_ids == whole.input_ids[:60]
    assert cut.labels == whole.labels[:60]
    assert whole.supervised == sum(label != IGNORED for label in whole.labels[1:])


def test_prompt_is_what_generation_starts_from():
    encoder = encoder_of("qwen2_5")
    text = encoder.tokenizer.decode(encoder.prompt(Conversation("a", TURNS)))
    assert text.endswith("Thanks. 0<|im_end|>\n<|im_start|>assistant\n")
    encoded = encoder.encode(Conversation("a", TURNS))
    assert encoded.input_ids[: len(encoder.prompt(Conversation("a", TURNS)))] == encoder.prompt(
        Conversation("a", TURNS)
    )


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("gemma", TURNS, "System role not supported"),
        ("gemma3", [assistant("Hello"), user("Hi"), assistant("!")], "must alternate"),
        ("smolvlm", TURNS, "leaves out messages of role 'system'"),
        ("llama3", TOOL_TURNS, "leaves out the assistant's tool calls"),
        (
            "phi3",
            [user("a"), {"role": "tool", "content": "4"}, assistant("b")],
            "leaves out messages of role 'tool'",
        ),
        ("phi3", TOOL_TURNS, "refuses this conversation"),
    ],
)
def test_what_a_template_refuses_or_drops_is_said(name, turns, message):
    with pytest.raises(InputError, match=message):
        Encoder(make_tokenizer(template(name), bos="<bos>"), 400).encode(Conversation("a", turns))


def test_a_first_turn_of_the_assistant():
    encoder = encoder_of("llama3_1")
    encoded = encoder.encode(Conversation("a", [assistant("Hello."), user("Hi"), assistant("What is it?")]))
    assert supervised_texts(encoded, encoder.tokenizer) == ["Hello.<|eot_id|>", "What is it?<|eot_id|>"]


def test_templates_without_an_end_or_tools_warn():
    encoder = Encoder(make_tokenizer(template("glm4moe")), 4000)
    encoder.encode(Conversation("a", TURNS))
    assert "no end" in encoder.warnings[0]
    encoder = Encoder(make_tokenizer(template("phi3")), 4000)
    encoder.encode(Conversation("a", TURNS, TOOLS))
    assert encoder.warnings == ["the chat template does not show the model the rows' tools"]


def letters(render):
    """`assistant_spans`' view of a template: one token a letter."""
    return lambda messages, prompt: [ord(letter) for letter in render(messages, prompt)]


def test_what_the_generation_prompt_leaves_open_belongs_to_the_turn():
    # the prompt opens "<t> " and the finished turn holds "<t></t>": the model writes all after "<t>"
    def render(messages, prompt):
        text = "".join(
            f"{m['role'][0]}:" + "<t></t>" * (m["role"] != "user") + m["content"] for m in messages
        )
        return text + ("a:<t> " if prompt else "")

    turns = [user("q"), assistant("b")]
    tokens = letters(render)
    ids = tokens(turns, False)
    assert assistant_spans(ids, turns, tokens, set()) == [(len("u:qa:<t>"), len(ids))]


@pytest.mark.parametrize("content", ["0x", "00", "xx", "x0", "0"])
def test_the_placeholder_never_hides_a_contents_ends(content):
    def render(messages, prompt):  # every rendering starts with its length, so no prefix is shared
        return f"{len(messages)}" + "".join(f"{m['role'][0]}:{m['content']}." for m in messages)

    turns = [user("q"), assistant(content), user("0x"), assistant(content)]
    tokens = letters(render)
    ids = tokens(turns, False)
    text = "".join(map(chr, ids))
    spans = assistant_spans(ids, turns, tokens, set())
    assert [text[start:end] for start, end in spans] == [f"{content}.", f"{content}."]
