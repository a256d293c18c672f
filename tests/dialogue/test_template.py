from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, models, pre_tokenizers

from realm.cleaning.presets import no_reserved_tokens
from realm.conversations.conversation import CONTEXT, ENDS_SESSION, Conversation, Message
from realm.dialogue.audit import audit_html, audit_runs, audit_text
from realm.dialogue.encoder import IGNORED, Encoder
from realm.dialogue.format import SYSTEM_PROMPTS, TemplateError, chat_format
from realm.dialogue.segments import split_long
from realm.evaluation.corpus import corpus_row

FORMATS = ["chatml", "dyadic"]
TRICKY = [
    'what\'s "this"?',
    "a \\ b \\n c \\\\",
    "line one\nline two\n\nline four",
    "{{ x }} {% if y %} {# z #} }}",
    "naïve café ☕ \U0001f642 日本語",
    "<b>tags</b> & </end> | <| im_end |>",
    "tabs\tand  blanks",
    "x",
]
# Cleaned content: no blanks around it, none of the tokens that carry the structure.
CONTENT = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=25)
    .map(str.strip)
    .filter(bool)
)
WORDS = st.lists(st.sampled_from(["hello", "code", "what?", "é", "\n", "and so on"]), min_size=1, max_size=14).map(
    lambda words: " ".join(words).strip() or "x"
)


@pytest.fixture(scope="session", params=FORMATS)
def format_name(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def chat(tokenizer, format_name):
    return chat_format(format_name, tokenizer)


@pytest.fixture(scope="session")
def encoder_of(tokenizer, chat):
    def build(supervise: str = "user", max_length: int | None = None, **fields) -> Encoder:
        return Encoder(tokenizer, chat, supervise, max_length, **fields)

    return build


def api_messages(messages, *, flipped: bool) -> list[dict[str, str]]:
    """What a caller sends: with a flipped template, the roles are swapped."""
    swap = {"user": "assistant", "assistant": "user"} if flipped else {}
    return [{"role": swap.get(m.role, m.role), "content": m.content} for m in messages]


def served_text(template: str, messages: list[dict[str, str]], reply: bool) -> str:
    """Rendered the way transformers and vLLM do; their front ends refuse an empty list before it comes to this."""
    rules = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return rules.from_string(template).render(messages=messages, add_generation_prompt=reply)


def served_tokens(tokenizer, template: str, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def supervised_runs(encoded, tokenizer) -> list[str]:
    return [text for on, text in audit_runs(encoded, tokenizer) if on]


def labelled(encoded) -> list[int]:
    return encoded.labels[encoded.labels != IGNORED].tolist()


# ---------------------------------------------------------------- rendering


def test_chatml_reads_as_expected(byte_level):
    text, spans = chat_format("chatml", byte_level).render([Message("user", "q"), Message("assistant", "a")], "s")
    assert text == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )
    assert [text[start:stop] for start, stop in spans] == ["q<|im_end|>", "a<|im_end|>"]


def test_dyadic_reads_as_expected(sentencepiece):
    text, spans = chat_format("dyadic", sentencepiece).render(
        [Message("user", "q"), Message("assistant", "a")], "s", "user"
    )
    assert text == "s\nHuman: <s>q</s>\nAssistant: <s>a</s>\nHuman: <s>"
    assert [text[start:stop] for start, stop in spans] == ["q</s>", "a</s>"]


def test_a_conversations_own_system_turn_replaces_the_default(chat, talk):
    own, _ = chat.render(talk("q", system="own").messages, "default")
    assert own == chat.render(talk("q").messages, "own")[0]
    assert "default" not in own


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("system", ["A system prompt.", "it's {{ x }}\nC:\\new\\ \\\\ {% y %}"])
@pytest.mark.parametrize("own_system", [None, "own's {{ y }} \\"])
def test_servers_render_what_training_renders(chat, talk, flipped, system, own_system):
    template = chat.jinja(system, flipped=flipped)
    for length in range(len(TRICKY) + 1):
        messages = talk(*TRICKY[:length], system=own_system).messages
        sent = api_messages(messages, flipped=flipped)
        speaker = "user" if flipped else "assistant"
        assert served_text(template, sent, reply=False) == chat.render(messages, system)[0]
        assert served_text(template, sent, reply=True) == chat.render(messages, system, speaker)[0]


@given(contents=st.lists(CONTENT, max_size=4), flipped=st.booleans())
def test_servers_render_any_content_as_it_is(chat, talk, contents, flipped):
    messages = talk(*contents).messages
    sent = api_messages(messages, flipped=flipped)
    assert served_text(chat.jinja("s", flipped=flipped), sent, reply=False) == chat.render(messages, "s")[0]


def test_an_empty_list_asks_for_an_opening_turn(chat):
    text = served_text(chat.jinja("s", flipped=True), [], reply=True)
    assert text == chat.render([], "s", "user")[0]
    assert text.endswith(chat.headers["user"])


def test_the_template_survives_in_a_saved_tokenizer(tokenizer, chat, talk, tmp_path):
    copy = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    copy.chat_template = chat.jinja("it's\n{{ s }}", flipped=True)
    copy.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    sent = api_messages(talk(*TRICKY).messages, flipped=True)
    assert again.apply_chat_template(sent, tokenize=False) == chat.render(talk(*TRICKY).messages, "it's\n{{ s }}")[0]


def test_rendering_refuses_a_reserved_token(chat, talk):
    with pytest.raises(TemplateError, match=r"reserved"):
        chat.render(talk(f"x{chat.reserved[0]}y").messages, "s")


def test_an_unknown_template_is_refused(byte_level):
    with pytest.raises(TemplateError, match="alpaca: unknown template; allowed: chatml, dyadic"):
        chat_format("alpaca", byte_level)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("chatml", "is not one token of this tokenizer; choose the other template"), ("dyadic", "begin and an end token")],
)
def test_a_tokenizer_without_the_tokens_is_refused(byte_level, name, complaint):
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate("<|>_imstartend")}, []))
    with pytest.raises(TemplateError, match=complaint):
        chat_format(name, type(byte_level)(tokenizer_object=letters))


def test_an_unknown_token_is_not_the_one_asked_for(byte_level):
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(TemplateError, match="is not one token"):
        chat_format("chatml", type(byte_level)(tokenizer_object=words, unk_token="<unk>"))


def test_every_special_token_is_reserved(tokenizer, chat, talk):
    assert set(chat.reserved) >= set(tokenizer.all_special_tokens) >= {"<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    assert len(chat.reserved) == len(set(chat.reserved))
    rule = no_reserved_tokens(chat.reserved)
    assert all(not rule(talk(f"a{token}b")).kept for token in chat.reserved)


def test_unreserved_content_adds_no_structure(tokenizer, chat, encoder_of, talk):
    structure = {tokenizer.convert_tokens_to_ids(token) for token in chat.reserved} - {tokenizer.unk_token_id}
    count = lambda c: int(np.isin(encoder_of("both").encode(c).input_ids, list(structure)).sum())  # noqa: E731
    assert count(talk(*TRICKY)) == count(talk(*["x"] * len(TRICKY)))


# ---------------------------------------------------------------- training and serving


def check_parity(tokenizer, encoder: Encoder, conversation: Conversation, speaker: str, template: str) -> None:
    """Before each turn of ``speaker``, the served prompt begins the training row, and a label follows it."""
    encoded = encoder.encode(conversation)
    for i, message in enumerate(conversation.messages):
        if message.role != speaker:
            continue
        # With nothing said yet, a caller sends the system message alone.
        said = conversation.messages[:i] or [Message("system", encoder.system)]
        sent = api_messages(said, flipped=speaker == "user")
        prompt = served_tokens(tokenizer, template, sent)
        assert encoded.input_ids[: len(prompt)].tolist() == prompt
        assert encoded.labels[len(prompt) - 1] == IGNORED
        assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]


@pytest.mark.parametrize("speaker", ["user", "assistant"])
@pytest.mark.parametrize("own_system", [None, "You are brief."])
def test_a_served_prompt_is_the_beginning_of_the_training_row(tokenizer, chat, encoder_of, talk, speaker, own_system):
    template = chat.jinja(SYSTEM_PROMPTS[speaker], flipped=speaker == "user")
    check_parity(tokenizer, encoder_of(speaker), talk(*TRICKY, system=own_system), speaker, template)


@given(contents=st.lists(CONTENT, min_size=1, max_size=5), speaker=st.sampled_from(["user", "assistant"]))
def test_parity_holds_for_any_cleaned_content(tokenizer, chat, encoder_of, talk, contents, speaker):
    conversation = talk(*contents)
    assume(no_reserved_tokens(chat.reserved)(conversation).kept)
    template = chat.jinja(SYSTEM_PROMPTS[speaker], flipped=speaker == "user")
    check_parity(tokenizer, encoder_of(speaker), conversation, speaker, template)


def test_a_caller_may_send_the_training_prompt_as_system_message(tokenizer, chat, talk):
    template = chat.jinja(SYSTEM_PROMPTS["user"], flipped=True)
    sent = api_messages(talk("q", "a").messages, flipped=True)
    opening = [{"role": "system", "content": SYSTEM_PROMPTS["user"]}]
    assert served_tokens(tokenizer, template, opening + sent) == served_tokens(tokenizer, template, sent)
    assert served_text(template, opening, reply=True) == served_text(template, [], reply=True)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("supervise", ["user", "assistant", "both"])
def test_the_mask_holds_contents_and_end_tokens_of_the_chosen_side(tokenizer, chat, encoder_of, talk, supervise):
    conversation = talk(*TRICKY, system="never trained")
    encoded = encoder_of(supervise).encode(conversation)
    wanted = [m.content + chat.ends[m.role] for m in conversation.messages if supervise in (m.role, "both")]
    wanted = wanted if supervise != "both" else wanted[-len(TRICKY) :]
    assert supervised_runs(encoded, tokenizer) == wanted
    assert np.array_equal(encoded.labels[encoded.labels != IGNORED], encoded.input_ids[encoded.labels != IGNORED])
    assert encoded.supervised == len(labelled(encoded))


@given(contents=st.lists(CONTENT, min_size=1, max_size=5))
def test_masks_decode_to_the_turns_of_any_conversation(byte_level, talk, contents):
    chat = chat_format("chatml", byte_level)
    conversation = talk(*contents)
    assume(no_reserved_tokens(chat.reserved)(conversation).kept)
    encoded = Encoder(byte_level, chat, "user", None).encode(conversation)
    assert supervised_runs(encoded, byte_level) == [t + "<|im_end|>" for t in conversation.turns("user")]


def test_begin_tokens_and_headers_are_never_supervised_end_tokens_always(tokenizer, chat, encoder_of, talk):
    conversation = talk(*TRICKY)
    encoded = encoder_of("both").encode(conversation)
    begin, end = (tokenizer.convert_tokens_to_ids(token) for token in chat.reserved[:2])
    assert begin in encoded.input_ids
    assert begin not in encoded.labels
    closing = encoded.input_ids == end
    own = encoded.labels[closing]
    # ChatML ends the system text with the same token, which nobody has to learn.
    assert own[len(own) - len(TRICKY) :].tolist() == [end] * len(TRICKY)
    assert (own[: len(own) - len(TRICKY)] == IGNORED).all()


def test_a_token_across_header_and_content_is_not_supervised(byte_level, talk):
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", None)
    encoded = encoder.encode(talk("  x"))
    (run,) = supervised_runs(encoded, byte_level)
    assert run.endswith("x<|im_end|>")
    assert "\n" not in run


def test_each_side_has_its_own_system_prompt(encoder_of):
    assert encoder_of("user").system == SYSTEM_PROMPTS["user"]
    assert encoder_of("assistant").system == SYSTEM_PROMPTS["assistant"]
    assert encoder_of("user", system=None).system is None
    assert encoder_of("user", system="mine").system == "mine"


def test_batches_give_what_single_conversations_give(encoder_of, talk, monkeypatch):
    monkeypatch.setattr("realm.dialogue.encoder.ENCODE_BATCH", 2)
    encoder, made = encoder_of(), [talk(*TRICKY[:n], id=str(n)) for n in range(1, 6)]
    for one, of_many in zip(map(encoder.encode, made), encoder.encode_all(made), strict=True):
        assert one.id == of_many.id
        assert one.input_ids.tolist() == of_many.input_ids.tolist()
        assert one.labels.tolist() == of_many.labels.tolist()


def test_nothing_to_learn_shows_as_zero(encoder_of, talk):
    encoded = encoder_of("user").encode(talk("a", first="assistant"))
    assert encoded.supervised == 0
    assert len(encoded.input_ids) > 0


def test_a_slow_tokenizer_is_refused(chat):
    class Slow:
        is_fast = False

    with pytest.raises(TemplateError, match="fast tokenizer"):
        Encoder(Slow(), chat, "user", None)


# ---------------------------------------------------------------- truncation


def test_a_cut_row_is_the_beginning_of_the_whole_one(encoder_of, talk):
    whole = encoder_of("user").encode(talk(*TRICKY))
    for limit in range(1, len(whole.input_ids) + 2):
        cut = encoder_of("user", limit).encode(talk(*TRICKY))
        assert cut.input_ids.tolist() == whole.input_ids[:limit].tolist()
        assert cut.labels.tolist() == whole.labels[:limit].tolist()
        assert cut.cut is (limit < len(whole.input_ids))


def test_without_tail_only_unsupervised_tokens_go(encoder_of, talk):
    encoded = encoder_of("user").encode(talk("q", "a long answer", "q2", "another long answer"))
    short = encoded.without_tail()
    assert len(short.input_ids) < len(encoded.input_ids)
    assert short.input_ids.tolist() == encoded.input_ids[: len(short.input_ids)].tolist()
    assert labelled(short) == labelled(encoded)
    assert short.labels[-1] != IGNORED
    assert short.without_tail().input_ids.tolist() == short.input_ids.tolist()


def test_rows_are_32_bit(encoder_of, talk):
    encoded = encoder_of("user").encode(talk("q"))
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int32


# ---------------------------------------------------------------- lengths and splitting


def test_turn_lengths_add_up_to_the_row(encoder_of, talk):
    encoder = encoder_of("user")
    lengths = next(encoder.turn_lengths([talk(*TRICKY)]))
    assert len(lengths) == len(TRICKY)
    assert encoder.system_length() + sum(lengths) == len(encoder.encode(talk(*TRICKY)).input_ids)
    for n in range(1, len(TRICKY)):
        row = encoder.encode(talk(*TRICKY[:n])).input_ids
        assert encoder.system_length() + sum(lengths[:n]) == len(row)


def check_segments(encoder: Encoder, conversation: Conversation, segments: list[Conversation]) -> None:
    assert tuple(m for s in segments for m in s.messages) == conversation.messages
    assert all(s.messages for s in segments)
    assert {s.session for s in segments} == {conversation.session}
    for segment in segments:
        encoded = encoder.encode(segment)
        assert len(encoded.input_ids) <= encoder.max_length
        assert not encoded.cut or len(segment.messages) == 1


def targets(encoder: Encoder, conversation: Conversation) -> list[list[int]]:
    """The supervised tokens of each turn."""
    encoded = encoder.encode(conversation)
    on = encoded.labels != IGNORED
    parts = np.split(encoded.input_ids, np.flatnonzero(np.diff(on)) + 1)
    flags = np.split(on, np.flatnonzero(np.diff(on)) + 1)
    return [part.tolist() for part, flag in zip(parts, flags, strict=True) if flag[0]]


@given(
    contents=st.lists(WORDS, min_size=1, max_size=9),
    room=st.integers(12, 80),
    first=st.sampled_from(["user", "assistant"]),
    own_system=st.sampled_from([None, None, "be brief"]),
)
def test_segments_hold_the_conversation_and_each_human_turn_once(encoder_of, talk, contents, room, first, own_system):
    conversation = talk(*contents, first=first, system=own_system, id="s_0")
    endless = encoder_of("user")
    encoder = encoder_of("user", endless.system_length() + room)
    (segments,) = split_long([conversation], encoder)
    check_segments(encoder, conversation, segments)
    whole = targets(endless, conversation)
    learned = [turn for segment in segments for turn in targets(encoder, segment)]
    assert len(learned) == len(whole) == len(conversation.turns("user"))
    # Only a turn that stands alone may be cut, and then its beginning is trained on.
    assert all(full[: len(part)] == part for full, part in zip(whole, learned, strict=True))
    cut = sum(encoder.encode(segment).cut for segment in segments)
    assert sum(full != part for full, part in zip(whole, learned, strict=True)) <= cut


@given(contents=st.lists(WORDS, min_size=1, max_size=8), room=st.integers(20, 80))
def test_the_learned_ending_has_its_place_in_the_last_segment(encoder_of, talk, contents, room):
    conversation = talk(*contents, id="s_0", meta={ENDS_SESSION: True})
    encoder = encoder_of("user", encoder_of().system_length() + room, ending=True)
    (segments,) = split_long([conversation], encoder)
    check_segments(encoder, conversation, segments)
    last = encoder.encode(segments[-1])
    if len(contents) % 2 == 0 and not last.cut:
        assert supervised_runs(last, encoder.tokenizer)[-1] == encoder.format.ends["user"]


def test_what_fits_is_left_alone(encoder_of, talk):
    conversation = talk("q", "a", id="s_0")
    assert split_long([conversation], encoder_of("user", 500)) == [[conversation]]


def sizes_of(encoder: Encoder, conversation: Conversation) -> tuple[int, list[int]]:
    return encoder.system_length(), next(encoder.turn_lengths([conversation]))


def test_a_segment_ends_before_the_round_that_no_longer_fits(encoder_of, talk):
    conversation = talk("q one", "a one", "q two", "a two", "q three", id="s_0")
    system, sizes = sizes_of(encoder_of(), conversation)
    exact = system + sum(sizes[:4])
    assert [len(s.messages) for s in split_long([conversation], encoder_of("user", exact))[0]] == [4, 1]
    assert [len(s.messages) for s in split_long([conversation], encoder_of("user", exact - 1))[0]] == [2, 3]


def test_segments_are_numbered_and_the_last_one_says_so(encoder_of, talk):
    meta = {"model": "m", "place_in_session": 6, "ends_session": True}
    conversation = talk("q one", "a one", "q two", "a two", id="s_0", meta=meta)
    system, sizes = sizes_of(encoder_of(), conversation)
    (segments,) = split_long([conversation], encoder_of("user", system + sum(sizes[:2])))
    assert [s.id for s in segments] == ["s_0/0", "s_0/1"]
    assert [s.meta for s in segments] == [
        {"model": "m", "session": "s_0", "place_in_session": 6},
        {"model": "m", "session": "s_0", "place_in_session": 8, "ends_session": True},
    ]
    assert not any(s.opens_session for s in segments)
    whole = talk("q one", "a one", "q two", "a two", id="x/0")
    assert [s.opens_session for s in split_long([whole], encoder_of("user", system + sum(sizes[:2])))[0]] == [
        True,
        False,
    ]


def test_an_overlong_first_human_turn_is_kept_and_trained_on_up_to_the_limit(encoder_of, talk):
    conversation = talk("hello there " * 40, "a", "and so on?", "b", id="s_0")
    encoder = encoder_of("user", encoder_of().system_length() + 40)
    (segments,) = split_long([conversation], encoder)
    check_segments(encoder, conversation, segments)
    first = encoder.encode(segments[0])
    assert [m.content for m in segments[0].messages] == ["hello there " * 40]
    assert first.cut
    assert first.supervised > 20
    assert first.labels[-1] != IGNORED


def test_a_trailing_human_turn_is_kept(encoder_of, talk):
    conversation = talk("q", "a", "the last word", id="s_0")
    system, sizes = sizes_of(encoder_of(), conversation)
    (segments,) = split_long([conversation], encoder_of("user", system + sum(sizes[:2])))
    assert segments[-1].turns("user") == ["the last word"]
    assert encoder_of("user").encode(segments[-1]).supervised > 0


# ---------------------------------------------------------------- what came before a segment


def bare(segment: Conversation) -> tuple[Message, ...]:
    """The turns that are the segment's own."""
    return segment.messages[segment.meta.get(CONTEXT, 0) :]


@given(
    contents=st.lists(WORDS, min_size=1, max_size=9),
    room=st.integers(60, 120),
    supervise=st.sampled_from(["user", "assistant", "both"]),
)
def test_context_is_the_end_of_the_answer_before_and_teaches_nothing(encoder_of, talk, contents, room, supervise):
    conversation = talk(*contents, id="s_0")
    endless = encoder_of(supervise)
    encoder = replace(encoder_of(supervise, endless.system_length() + room), context=12)
    (segments,) = split_long([conversation], encoder)
    assert tuple(m for s in segments for m in bare(s)) == conversation.messages
    place = 0
    for segment in segments:
        encoded = encoder.encode(segment)
        assert len(encoded.input_ids) <= encoder.max_length
        assert not encoded.cut or len(bare(segment)) == 1
        inside = place > 0 and bare(segment)[0].role == "user"
        assert segment.meta.get(CONTEXT, 0) == int(inside)
        if inside:
            answer = conversation.messages[place - 1].content
            assert segment.messages[0].role == "assistant" and answer.endswith(segment.messages[0].content)
            alone = replace(encoder, max_length=None).encode(replace(segment, messages=segment.messages[:1]))
            assert alone.supervised == 0
        place += len(bare(segment))
    learned = [turn for segment in segments for turn in targets(encoder, segment)]
    whole = targets(endless, conversation)
    if supervise != "both":  # where both are supervised, neighbouring turns are one run
        assert len(learned) == len(whole)


def test_context_holds_about_as_many_tokens_as_asked_and_begins_with_one(encoder_of, talk):
    long = " ".join(f"word{i}" for i in range(60))
    encoder = encoder_of("user")
    for count in (1, 5, 20):
        end = encoder.last_tokens(long, count)
        assert long.endswith(end) and end != long
        assert abs(len(encoder.tokenizer(end, add_special_tokens=False).input_ids) - count) <= 2
    assert encoder.last_tokens("short", 20) == "short"


def test_without_context_segments_are_as_they_were(encoder_of, talk):
    conversation = talk("q one", "a one", "q two", "a two", id="s_0")
    system, sizes = sizes_of(encoder_of(), conversation)
    (segments,) = split_long([conversation], encoder_of("user", system + sum(sizes[:2])))
    assert all(CONTEXT not in s.meta for s in segments)


# ---------------------------------------------------------------- looking at a mask


def test_the_audit_shows_what_the_loss_sees(byte_level, talk):
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", None, system="s")
    encoded = encoder.encode(talk("q é", "a"))
    assert audit_text(encoded, byte_level) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n⟦q é<|im_end|>⟧\n<|im_start|>assistant\na<|im_end|>\n"
    )
    assert audit_text(encoded, byte_level, limit=5) == "<|im_ …"


def test_the_audit_in_notebooks_runs_no_script(byte_level, talk):
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", None, system="s")
    page = audit_html(encoder.encode(talk("<script>alert('x')</script>", "<img src=x onerror=y>")), byte_level)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page


def test_the_audit_in_notebooks_tells_the_share_and_stops_at_its_limit(byte_level, talk):
    encoder = Encoder(byte_level, chat_format("chatml", byte_level), "user", None, system="s")
    encoded = encoder.encode(talk("word " * 100, "a"))
    before = len(encoder.format.render([], "s", "user")[0])
    page = audit_html(encoded, byte_level, limit=before + len("word word"))
    share = round(100 * encoded.supervised / len(encoded.input_ids))
    assert f"{len(encoded.input_ids)} tokens, {share}% supervised" in page
    assert page.count(">word word<") == 1
    assert " …" in page


def test_a_corpus_row_counts_turns_and_tokens(talk):
    row = corpus_row("ours", [talk("a", "b"), talk("c")], [[10, 20], [6]])
    assert row == {
        "corpus": "ours",
        "conversations": 2,
        "messages": 3,
        "tokens_per_message": 12.0,
        "tokens_per_conversation": 18.0,
    }


def test_an_encoded_row_can_be_replaced_but_not_changed(encoder_of, talk):
    encoded = encoder_of().encode(talk("q"))
    assert replace(encoded, id="other").id == "other"
    with pytest.raises(AttributeError):
        encoded.id = "other"
