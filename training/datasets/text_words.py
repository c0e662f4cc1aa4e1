"""What the rendered text says: words of seventeen languages, and words made up from one text's pairs of letters.

The text is Article 1 of the Universal Declaration of Human Rights (United Nations, 1948; free to be reproduced) with a
few sentences around it. Training and validation draw from CLDR's names too (text_vocabulary.py), the test from the text
alone. A real word belongs to one part of the data. Chinese and Japanese draw from the frequent characters of their
national standards instead (GB 2312 and JIS X 0208, level 1).
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import numpy as np

from training.datasets.text_fonts import Part, Script
from training.datasets.text_vocabulary import FEWEST_LETTERS, MOST_LETTERS, names

__all__ = ["CASED", "MADE_UP", "RIGHT_TO_LEFT", "draw_text", "vocabulary"]

CASED = frozenset[Script]({"latin", "greek", "cyrillic"})
RIGHT_TO_LEFT = frozenset[Script]({"hebrew", "arabic"})

MADE_UP = 0.5  # share of the words that are made up, unless another is asked for
END_MARKS = (".", ",", ":", ";", "!", "?")
PUNCTUATED, NUMBERED = 0.15, 0.08  # shares of the lines of cased scripts; other fonts may lack both
CASES, CASE_SHARES = ("lower", "title", "upper"), (0.4, 0.35, 0.25)

LATIN = """
All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should
act towards one another in a spirit of brotherhood. Everyone has the right to life, liberty and security of person. No
one shall be held in slavery or servitude; the slave trade shall be prohibited in all their forms. Everyone is entitled
to recognition everywhere as a person before the law, to freedom of movement, opinion, thought, peaceful assembly,
work, rest and leisure, a standard of living adequate for health, food, clothing, housing, medical care, education and
the arts, without distinction of any kind, such as race, colour, sex, language, religion, political origin, property,
birth or other status.
Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et
doivent agir les uns envers les autres dans un esprit de fraternité. Chacun peut se prévaloir de toutes les libertés
proclamées dans la présente Déclaration, sans distinction aucune, notamment de langue, de fortune ou de naissance.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen
einander im Geiste der Brüderlichkeit begegnen. Jeder hat Anspruch auf die in dieser Erklärung verkündeten Rechte und
Freiheiten ohne irgendeinen Unterschied, etwa nach Sprache, Religion, Vermögen oder Geburt.
Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia,
deben comportarse fraternalmente los unos con los otros.
Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza e
devono agire gli uni verso gli altri in spirito di fratellanza.
Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir
uns para com os outros em espírito de fraternidade.
Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten, en
behoren zich jegens elkander in een geest van broederschap te gedragen.
Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete och bör handla
gentemot varandra i en anda av broderskap.
Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja omatunto, ja
heidän on toimittava toisiaan kohtaan veljeyden hengessä.
Semua orang dilahirkan merdeka dan mempunyai martabat dan hak yang sama. Mereka dikaruniai akal dan hati nurani dan
hendaknya bergaul satu sama lain dalam semangat persaudaraan.
"""
GREEK = """
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι με λογική και
συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης. Κάθε άνθρωπος δικαιούται να επικαλείται
όλα τα δικαιώματα και όλες τις ελευθερίες που προκηρύσσει η παρούσα διακήρυξη, χωρίς καμία απολύτως διάκριση, ειδικότερα
ως προς τη φυλή, το χρώμα, το φύλο, τη γλώσσα, τις θρησκείες, την περιουσία, τη γέννηση ή οποιαδήποτε άλλη κατάσταση.
Κάθε άτομο έχει δικαίωμα στη ζωή, την ελευθερία και την προσωπική του ασφάλεια.
"""
CYRILLIC = """
Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны поступать
в отношении друг друга в духе братства. Каждый человек имеет право на жизнь, на свободу и на личную неприкосновенность.
Каждый человек должен обладать всеми правами и всеми свободами, провозглашенными настоящей Декларацией, без какого бы то
ни было различия, как то в отношении расы, цвета кожи, пола, языка, религии, политических или иных убеждений.
Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю і повинні діяти у
відношенні один до одного в дусі братерства. Всички хора се раждат свободни и равни по достойнство и права.
"""
HEBREW = """
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון, לפיכך חובה עליהם לנהוג איש
ברעהו ברוח של אחווה. כל אדם זכאי לזכויות ולחרויות שנקבעו בהכרזה זו ללא הפליה כלשהי מטעמי גזע, צבע, מין, לשון,
דת, דעה פוליטית או דעה בבעיות אחרות, מוצא לאומי או חברתי, קנין, לידה או מעמד אחר. כל אדם יש לו הזכות לחיים,
לחרות ולבטחון אישי.
"""
ARABIC = """
يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء. لكل
إنسان حق التمتع بكافة الحقوق والحريات الواردة في هذا الإعلان، دون أي تمييز، كالتمييز بسبب العنصر أو اللون أو الجنس أو
اللغة أو الدين أو الرأي السياسي أو أي رأي آخر، أو الأصل الوطني أو الاجتماعي أو الثروة أو الميلاد. لكل فرد الحق في الحياة
والحرية وسلامة شخصه.
"""
DEVANAGARI = """
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और
परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए। सभी को इस घोषणा में सन्निहित सभी अधिकारों और आजादियों को प्राप्त करने का हक है और
इस मामले में जाति, वर्ण, लिंग, भाषा, धर्म, राजनीति या अन्य विचार, किसी देश या समाज विशेष में जन्म, सम्पत्ति या किसी प्रकार की अन्य
मर्यादा आदि के कारण भेदभाव का विचार न किया जाएगा। प्रत्येक व्यक्ति को जीवन, स्वाधीनता और वैयक्तिक सुरक्षा का अधिकार है।
"""
TEXTS: dict[Script, str] = {
    "latin": LATIN,
    "greek": GREEK,
    "cyrillic": CYRILLIC,
    "hebrew": HEBREW,
    "arabic": ARABIC,
    "devanagari": DEVANAGARI,
}
RUN_OF_LETTERS = re.compile(r"[^\s.,;:!?।،]+")
VALIDATION_BUCKET, TEST_BUCKET, BUCKETS = 0, 1, 8


def _words(script: Script) -> tuple[str, ...]:
    """Every word of a script's text once, lower case, in sorted order."""
    return tuple(sorted({word.lower() for word in RUN_OF_LETTERS.findall(TEXTS[script])}))


def _part_of(word: str) -> Part:
    bucket = zlib.crc32(word.encode()) % BUCKETS
    return "validation" if bucket == VALIDATION_BUCKET else "test" if bucket == TEST_BUCKET else "train"


@lru_cache(maxsize=32)
def vocabulary(script: Script, part: Part) -> tuple[str, ...]:
    """The real words that one part of the data draws from, in sorted order.

    CLDR's whose part would be the test are left out, unless the text has them: the test is of the text's words alone.

    Raises:
        DataError: Babel, which has CLDR's names, is not installed.
    """
    words = _words(script) if part == "test" else sorted({*_words(script), *names(script)})
    return tuple(word for word in words if _part_of(word) == part)


@lru_cache(maxsize=16)
def _followers(script: Script) -> dict[str, str]:
    """For every letter those that follow it, as often as they do; "" starts a word, and a space ends it."""
    pairs: dict[str, list[str]] = {}
    for word in RUN_OF_LETTERS.findall(TEXTS[script].lower()):
        for first, second in zip(("", *word), (*word, " "), strict=True):
            pairs.setdefault(first, []).append(second)
    return {letter: "".join(following) for letter, following in pairs.items()}


def _pick(choices: str | tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _made_up(script: Script, rng: np.random.Generator) -> str:
    """A word as a Markov chain over pairs of letters writes it."""
    followers = _followers(script)
    while True:
        word = letter = _pick(followers[""], rng)
        while len(word) <= MOST_LETTERS and (letter := _pick(followers[letter], rng)) != " ":
            word += letter
        if len(word) <= MOST_LETTERS:
            return word


@lru_cache(maxsize=4)
def _characters(encoding: str, first_row: int, last_row: int) -> str:
    """The characters of some rows of a 94 x 94 national standard."""
    cells = (bytes([0xA0 + row, 0xA0 + cell]) for row in range(first_row, last_row + 1) for cell in range(1, 95))
    return "".join(cell.decode(encoding, errors="ignore") for cell in cells)


def _ideographs(script: Script, rng: np.random.Generator) -> str:
    """One line of Chinese or Japanese; Japanese mixes kanji with kana as its sentences do."""
    length = int(rng.integers(2, 11))
    if script == "han":
        frequent = _characters("gb2312", 16, 55)
        return "".join(_pick(frequent, rng) for _ in range(length))
    hiragana, katakana, kanji = (_characters("euc_jp", *rows) for rows in ((4, 4), (5, 5), (16, 47)))
    if rng.random() < 0.25:
        return "".join(_pick(katakana, rng) for _ in range(max(3, length)))
    return "".join(_pick(kanji if rng.random() < 0.45 else hiragana, rng) for _ in range(max(3, length)))


def _word(script: Script, part: Part, rng: np.random.Generator, made_up: float) -> str:
    real = vocabulary(script, part)
    return _made_up(script, rng) if not real or rng.random() < made_up else _pick(real, rng)


def _in_case(text: str, case: str) -> str:
    match case:
        case "upper":
            # Greek capitals carry no accents; a lone sharp s has no capital in most fonts.
            return text.replace("ß", "ss").upper().translate(str.maketrans("ΆΈΉΊΌΎΏ", "ΑΕΗΙΟΥΩ"))
        case "title":
            return text[:1].upper() + text[1:]
        case _:
            return text


def draw_text(script: Script, part: Part, rng: np.random.Generator, made_up: float = MADE_UP) -> str:
    """One line of 3 to 18 letters (Chinese from 2), with its case, numbers and punctuation."""
    if script in ("han", "japanese"):
        return _ideographs(script, rng)
    wanted = int(rng.integers(FEWEST_LETTERS, MOST_LETTERS + 1))
    line = ""
    while len(line) < min(wanted, FEWEST_LETTERS + 1) or (len(line) < wanted - 2 and rng.random() < 0.8):
        word = _word(script, part, rng, made_up)
        if line and len(line) + 1 + len(word) > MOST_LETTERS:
            break
        line = f"{line} {word}".strip()
    line = line[:MOST_LETTERS].strip()
    if script in CASED:
        line = _in_case(line, CASES[int(rng.choice(len(CASES), p=CASE_SHARES))])
        if rng.random() < NUMBERED:
            line = f"{line} {rng.integers(1, 2030)}"
        if rng.random() < PUNCTUATED:
            line += _pick(END_MARKS, rng)
    return line
