"""The words of Fable: every token of the corpus belongs to one of these lists.

The vocabulary is closed (at most 1,024 tokens) and word level: one word is one
token, one punctuation mark is one token. Nouns, adjectives and objects that
follow "a" all begin with a consonant, so the grammar never needs "an".
"""

# Word lists read best as running text.
# ruff: noqa: SIM905
from __future__ import annotations

FEMALE_NAMES = tuple(
    """Mary Anna Alice Emma Sarah Laura Julia Kate Lucy Jane Helen Ruth Clara Diana Nora Lily Emily Sophie
    Rachel Rebecca Hannah Maria Linda Susan Karen Lisa Nancy Betty Sandra Ashley Donna Carol Michelle Amanda
    Melissa Deborah Stephanie Cynthia Kathleen Amy Angela Anne Brenda Pamela Nicole Samantha Katherine
    Christine Catherine Janet Heather Diane Olivia Martha Eva Ella""".split()
)
MALE_NAMES = tuple(
    """John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul
    Steven Andrew Kenneth George Kevin Brian Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric
    Stephen Jonathan Larry Justin Scott Brandon Benjamin Samuel Frank Gregory Raymond Patrick Alexander Jack
    Dennis Jerry Tyler Aaron Henry Peter Adam Nathan Simon Oliver Martin""".split()
)
NAMES = FEMALE_NAMES + MALE_NAMES

KNOWN_ENTITIES = tuple(
    """Velmar Orlan Tessik Brunda Kalvo Mirex Dornal Fenwik Galdra Hestor Iskara Jorvel Kelpin Lumora Mazrik
    Nefti Olbern Pravin Quendal Rostik Selvar Tarkin Ulmara Vostok Wendra Xarlo Yelmik Zandor Ablor Bexil
    Cormak
    Daxin Elvorn Frimba Grendal Holvik Indrel Juspar Kirmal Lorvan Menzik Nardol Oskel Pendra Quorin Relvik
    Sundar Trevok Unzel Varnik Wistor Xendra Yorvin Zeltik Arvind Balmor Cendrik Delvan Ermok Falzin Gorlan
    Hulvar Imvek Jandra Kolvir Lindrak Morzan Nelvor Ordak Pelmin Kwistal Rondar Silvek Tolmar
    Urvin""".split()
)
UNKNOWN_ENTITIES = tuple(
    """Abzu Bokri Chulo Dweni Ekpo Foshi Gumbi Hyoru Ixta Jubei Kwasi Lhasu Moyo Ngozu Ohtu Pukli Qashu Rhozu
    Shuko Tlali Ushko Vlasu Wuzhi Xhuso Yushu Zhuko Bhasi Dzuri Fhemi Ghuli Khemu Mbiku Nkosu Phuri Sduli
    Tsuki Vhuto Zsofi Oshu Ykito""".split()
)
ENTITIES = KNOWN_ENTITIES + UNKNOWN_ENTITIES

CITIES = tuple(
    """Paris London Rome Berlin Madrid Vienna Tokyo Moscow Cairo Dublin Oslo Athens Boston Chicago Dallas
    Denver
    Seattle Houston Detroit Miami Toronto Sydney Delhi Prague""".split()
)
FOODS = tuple(
    "bread rice soup honey cheese butter cake salt milk sugar corn meat pasta chocolate garlic salad".split()
)
COLOURS = tuple("red blue green yellow black white brown pink purple golden".split())

PLACES = tuple(
    """store park market garden school station library harbour church castle kitchen office museum
    farm beach forest village theatre hospital bakery""".split()
)
_ANIMALS = """fox:foxes dog:dogs cat:cats horse:horses bird:birds bear:bears wolf:wolves rabbit:rabbits
    cow:cows goat:goats duck:ducks frog:frogs lion:lions tiger:tigers monkey:monkeys snake:snakes
    mouse:mice pig:pigs hen:hens camel:camels donkey:donkeys bee:bees"""
_OBJECTS = """book:books ring:rings lamp:lamps cup:cups key:keys box:boxes ball:balls hat:hats coat:coats
    bag:bags map:maps letter:letters knife:knives bell:bells coin:coins basket:baskets
    bottle:bottles mirror:mirrors drum:drums kite:kites"""
_PEOPLE = """baker:bakers farmer:farmers doctor:doctors teacher:teachers singer:singers painter:painters
    soldier:soldiers king:kings queen:queens driver:drivers hunter:hunters writer:writers pilot:pilots
    judge:judges nurse:nurses sailor:sailors"""


def _pairs(text: str) -> dict[str, str]:
    return {first: second for first, _, second in (item.partition(":") for item in text.split())}


PLURAL_OF = {**_pairs(_ANIMALS), **_pairs(_OBJECTS), **_pairs(_PEOPLE)}
"""Singular noun -> plural noun, for every noun that has both."""
ANIMALS, ANIMALS_PLURAL = tuple(_pairs(_ANIMALS)), tuple(_pairs(_ANIMALS).values())
COUNTED_OBJECTS, OBJECTS_PLURAL = tuple(_pairs(_OBJECTS)), tuple(_pairs(_OBJECTS).values())
PEOPLE, PEOPLE_PLURAL = tuple(_pairs(_PEOPLE)), tuple(_pairs(_PEOPLE).values())
OBJECTS = COUNTED_OBJECTS + tuple(
    "rope candle blanket hammer ladder pencil bucket ticket clock flag shell stone spoon brush drink".split()
)
EVENTS = tuple("war siege feud journey plague truce reign drought voyage strike famine contest".split())
REVIEWED = tuple("film song play show story meal hotel game".split())
REVIEW_PARTS = tuple("music acting ending service cast plot staff room".split())

NUMBER_WORDS = tuple(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty""".split()
)
TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
ORDINALS = tuple("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)

ADJECTIVES = tuple(
    "small big tall young quick slow quiet strange clever hungry tired brave cold warm".split()
)
POSITIVE_ADJECTIVES = tuple("great good wonderful lovely brilliant superb charming delightful".split())
NEGATIVE_ADJECTIVES = tuple("bad terrible boring dull poor horrible weak dreadful".split())
POSITIVE_VERBS = tuple("loved enjoyed liked admired".split())
NEGATIVE_VERBS = tuple("hated disliked regretted despised".split())
POSITIVE_WORDS = (*POSITIVE_ADJECTIVES, *POSITIVE_VERBS, "happy", "smiled", "laughed", "positive")
NEGATIVE_WORDS = (*NEGATIVE_ADJECTIVES, *NEGATIVE_VERBS, "sad", "cried", "negative")

TRANSFER_VERBS = tuple("gave handed passed offered sold sent showed lent brought threw".split())
MOTION_VERBS = tuple("went came walked left ran returned travelled".split())
SPEECH_VERBS = tuple("said wrote asked shouted whispered sang".split())
OTHER_PAST_VERBS = tuple(
    """met sat worked played saw lost found had slept smiled laughed cried bought kept lasted began
    ended hung read counted did waited stopped wanted forgot thought opened carried watched""".split()
)
PAST_VERBS = (
    *TRANSFER_VERBS, *MOTION_VERBS, *SPEECH_VERBS, *OTHER_PAST_VERBS, *POSITIVE_VERBS, *NEGATIVE_VERBS,
)  # fmt: skip
_PRESENT = """sleeps:sleep waits:wait sings:sing runs:run falls:fall eats:eat dances:dance hides:hide
    swims:swim
    jumps:jump works:work smiles:smile"""
BASE_OF = _pairs(_PRESENT)
"""Third-person singular verb -> base (plural) form."""
PRESENT_SINGULAR, PRESENT_BASE = tuple(BASE_OF), tuple(BASE_OF.values())

# One Tavi word per English word and the same word order: translation is a lookup plus a copy of position.
TAVI = _pairs(
    """the:lo in:en near:prun fox:vulpa dog:kano cat:feli horse:ekvo bird:avio bear:urso wolf:lupo
    rabbit:kunilo cow:bovu goat:kapri duck:anaso frog:rano lion:leono tiger:tigru monkey:simio
    snake:serpo mouse:muzo pig:porku hen:galino camel:kamelu donkey:azeno bee:abelo red:rozu
    blue:blavo green:verdu yellow:flavo black:nigru white:blanku brown:bruno pink:rozka
    purple:violu golden:orumo small:etu big:grando tall:altu young:junu quick:rapidu slow:lentu
    quiet:silu strange:kurio clever:ruza hungry:malsa tired:lasa brave:kuraja cold:frida
    warm:varma sleeps:dorma waits:atenda sings:kanta runs:kura falls:fala eats:manja dances:danca
    hides:kasha swims:naja jumps:salta works:labora smiles:rida park:parko market:bazaro
    garden:jardeno school:lerneyo forest:arbaro village:vilajo harbour:haveno castle:kastelo"""
)
TAVI_PLACES = tuple(word for word in PLACES if word in TAVI)
TAVI_WORDS = tuple(TAVI.values())

SUBJECT_PRONOUNS_FEMALE, SUBJECT_PRONOUNS_MALE = ("she", "She"), ("he", "He")
FEMALE_PRONOUNS, MALE_PRONOUNS = ("she", "She", "her", "Her"), ("he", "He", "him", "his", "His")
FIRST_PERSON = ("I", "we", "We", "my")
PLURAL_PRONOUNS = ("they", "They", "them", "their", "we", "We")
PRONOUNS = tuple(
    dict.fromkeys((*FEMALE_PRONOUNS, *MALE_PRONOUNS, *PLURAL_PRONOUNS, *FIRST_PERSON, "it", "It", "you"))
)
POSSESSIVES = ("her", "Her", "his", "His", "their", "my")
NEGATIONS = ("not", "never", "no", "No", "nobody", "Nobody")
PREPOSITIONS = tuple("to from in near at on for with behind under beside of by into In On For".split())
CONJUNCTIONS = tuple(
    "and but because so when or When While After Before Because As Once If then Then".split()
)
ARTICLES = ("the", "The", "a")
AUXILIARIES = tuple("is are was were has have does can".split())
QUESTION_WORDS = ("Where", "What", "Which", "Who")

OPENERS = {'"': '"', "(": ")", "[": "]"}
PUNCTUATION = (".", ",", "!", "?", ":", ";", '"', "(", ")", "[", "]")
SPECIALS = ("<pad>", "<unk>", "<bos>")

_OTHER = """Sisters Brothers girls boys sister brother name call
    colour year likes food much city place want like followed stop after before that this it very
    again home town favourite calls lives live eat unknown answer says Everyone Tavi English means
    words list order goes come next Pairs List Again Friends Today Later Yesterday together There
    there door wall sign note old ask what which where would People think Review review This
    Premise Claim Verdict entailment neutral contradiction positive negative be what What every
    too word one One all Come here I My Maybe Old other see river everybody now Perhaps day""".split()

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *SPECIALS, *PUNCTUATION, *NAMES, *ENTITIES, *CITIES, *FOODS, *COLOURS, *PLACES, *ANIMALS,
            *ANIMALS_PLURAL, *OBJECTS, *OBJECTS_PLURAL, *PEOPLE, *PEOPLE_PLURAL, *EVENTS, *REVIEWED,
            *REVIEW_PARTS, *TWO_DIGITS, *NUMBER_WORDS, *ORDINALS, *DAYS, *MONTHS, *ADJECTIVES,
            *POSITIVE_WORDS, *NEGATIVE_WORDS, *PAST_VERBS, *PRESENT_SINGULAR, *PRESENT_BASE, *TAVI_WORDS,
            *PRONOUNS, *NEGATIONS, *PREPOSITIONS, *CONJUNCTIONS, *ARTICLES, *AUXILIARIES, *QUESTION_WORDS,
            *_OTHER,
        )
    )
)  # fmt: skip
"""Every token, in id order: a token's id is its index here."""

TOKEN_ID: dict[str, int] = {word: index for index, word in enumerate(VOCABULARY)}
