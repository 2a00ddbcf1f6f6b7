"""Captions of scenes: plain and rich ones for training, and those of the evaluation, with held-out words."""

import random
from dataclasses import dataclass

from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.forms import Form, forms, pick, style_phrases
from llmdiff.world.layouts import OPPOSITE
from llmdiff.world.phrases import Phrase, absent_phrases, phrase
from llmdiff.world.places import places
from llmdiff.world.scenes import Placed, Scene
from llmdiff.world.voices import Voice
from llmdiff.world.words import COUNT_WORDS, joined, sentence, word_count

MOST_SENTENCES, LEAST_WORDS, MOST_WORDS, LONG_WORDS = 6, 3, 150, 77


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text that describes a scene, and its requirements."""

    text: str
    expected: Expected


class _Draft:
    """An unfinished caption: its clause, whether the clause is a noun phrase, and the sentences after it."""

    def __init__(self, text: str, *, is_phrase: bool) -> None:
        self.text, self.is_phrase = text, is_phrase
        self.before: list[str] = []
        self.after: list[str] = []

    def wrap(self, form: Form, **gaps: str) -> None:
        self.text = form.text.format(x=self.text, **gaps)

    @property
    def sentences(self) -> list[str]:
        return [*self.before, self.text, *self.after]


def caption(scene: Scene, voice: Voice, rng: random.Random) -> Caption:
    """Return a caption of the scene in this voice."""
    groups = scene.groups
    described = rng.randrange(len(groups)) if voice.describes_one else None
    phrases = [
        phrase(placed, count, voice, rng, described=index == described)
        for index, (placed, count) in enumerate(groups)
    ]
    style = scene.style if scene.style != "flat" or rng.random() < voice.flat_share else None
    says_background = scene.background is not None and rng.random() < voice.background_share
    wrapped = style is not None and rng.random() < 0.7 and scene.relation != "spots"
    draft = _core(scene, phrases, voice, rng, bare=wrapped)
    _say_absent(draft, scene, voice, rng)
    if scene.place is not None:
        _say_place(draft, scene.place, voice, rng)
    elif says_background:
        _say(draft, "background", voice, rng, c=scene.background or "")
    if style is not None:
        words = rng.choice(style_phrases(style, voice.style_tiers))
        kind = "style-np" if wrapped and draft.is_phrase else "style-s"
        form = pick(kind, voice.tiers, rng)
        if form.is_phrase:
            draft.wrap(form, s=words)
        else:
            draft.after.insert(rng.randint(0, len(draft.after)), form.text.format(s=words))
    _add_distractors(draft, voice, rng)
    expected = Expected(
        things=tuple(
            _expected_thing(placed, count, words)
            for (placed, count), words in zip(groups, phrases, strict=True)
        ),
        relation=None if scene.relation in ("alone", "group") else scene.relation,
        style=style,
        place=scene.place,
        background=scene.background if says_background else None,
        absent=scene.absent if voice.says_absent else (),
    )
    return Caption(text=_finished(draft.sentences, voice, rng), expected=expected)


def _core(scene: Scene, phrases: list[Phrase], voice: Voice, rng: random.Random, *, bare: bool) -> _Draft:
    relation: str = scene.relation
    if relation == "spots":
        return _spots(scene, phrases, voice, rng)
    if relation in ("right", "below"):  # forms exist for left and above: a right of b is b left of a
        relation, phrases = OPPOSITE[relation], phrases[::-1]
    form = pick(relation, voice.tiers, rng)
    if bare:
        # Avoid "a line drawing of a picture of a cat".
        bare_forms = [
            form for form in forms(relation, voice.tiers) if form.is_phrase and form.text.startswith("{")
        ]
        form = rng.choice(bare_forms) if bare_forms else form
    if relation == "group":
        together = Phrase(
            text=joined([words.text for words in phrases]), is_plural=len(phrases) > 1 or phrases[0].is_plural
        )
        phrases = [together]
    gaps = dict(zip("abc", (words.text for words in phrases), strict=False))
    verbs = ["are" if words.is_plural else "is" for words in phrases]
    gaps |= {"is": verbs[0], "bis": verbs[-1], "p": scene.things[0].spot or ""}
    return _Draft(form.text.format(**gaps), is_phrase=form.is_phrase)


def _spots(scene: Scene, phrases: list[Phrase], voice: Voice, rng: random.Random) -> _Draft:
    clauses = []
    for placed, words in zip(scene.things, phrases, strict=True):
        spot = placed.spot if placed.spot == "middle" else f"{placed.spot} corner"
        form = pick("spot", voice.tiers, rng)
        verb = "are" if words.is_plural else "is"
        clauses.append(form.text.format(a=words.text, p=spot, **{"is": verb}))
    rng.shuffle(clauses)
    most = voice.most_spot_sentences
    while len(clauses) > most:
        at = rng.randrange(len(clauses) - 1)
        clauses[at : at + 2] = [f"{clauses[at]}, and {clauses[at + 1]}"]
    draft = _Draft(clauses[0], is_phrase=False)
    draft.after = clauses[1:]
    if "rich" in voice.tiers and rng.random() < voice.opening_share:
        opening = pick("opening", voice.tiers, rng)
        draft.before.append(opening.text.format(k=COUNT_WORDS[len(scene.things)]))
    return draft


def _say(draft: _Draft, kind: str, voice: Voice, rng: random.Random, **gaps: str) -> None:
    """Add a form of this kind to the clause or as a separate sentence."""
    one_clause = not draft.after and not draft.text.endswith("?")
    if one_clause and rng.random() < (0.85 if draft.is_phrase else 0.5):
        draft.wrap(pick(kind, voice.tiers, rng), **gaps)
    else:
        draft.after.append(pick(f"{kind}-s", voice.tiers, rng).text.format(**gaps))


def _say_place(draft: _Draft, name: str, voice: Voice, rng: random.Random) -> None:
    place = places()[name]
    words = {"plain": place.phrases, "rich": place.rich_phrases, "held out": place.held_out_phrases}
    phrases = [text for tier in voice.place_tiers for text in words[tier]]
    _say(draft, "place", voice, rng, p=rng.choice(phrases))


def _say_absent(draft: _Draft, scene: Scene, voice: Voice, rng: random.Random) -> None:
    if not (voice.says_absent and scene.absent):
        return
    with_article, without = absent_phrases(scene.absent)
    tiers = voice.absent_tiers
    if draft.is_phrase and rng.random() < 0.6:
        draft.wrap(pick("absent", tiers, rng), n=with_article)
    else:
        draft.after.append(pick("absent-s", tiers, rng).text.format(n=with_article, m=without))


def _add_distractors(draft: _Draft, voice: Voice, rng: random.Random) -> None:
    wanted, wants_long = rng.choice(voice.distractors), rng.random() < voice.long_share
    others = [form.text for form in forms("distractor", voice.distractor_tiers)]
    for text in rng.sample(others, len(others)):
        words = word_count(" . ".join(draft.sentences))
        is_short = wants_long and words <= LONG_WORDS
        room = len(draft.sentences) < MOST_SENTENCES and words + word_count(text) < MOST_WORDS
        if not room or (wanted <= 0 and not is_short):
            break
        # Only at the start or end: in "it is a line drawing", "it" refers to the sentence before.
        if rng.random() < 0.4:
            draft.before.insert(0, text)
        else:
            draft.after.append(text)
        wanted -= 1


def _finished(sentences: list[str], voice: Voice, rng: random.Random) -> str:
    if len(sentences) == 1 and word_count(sentences[0]) < LEAST_WORDS:
        sentences = [f"a picture of {sentences[0]}"]
    if len(sentences) == 1 and rng.random() < voice.bare_share:
        return sentences[0]
    return " ".join(map(sentence, sentences))


def _expected_thing(placed: Placed, count: int, words: Phrase) -> ExpectedThing:
    return ExpectedThing(
        name=placed.name,
        count=count,
        colour=placed.colour,
        size=placed.size,
        upside_down=placed.upside_down,
        who=placed.who if words.says_who else None,
        spot=placed.spot,
    )
