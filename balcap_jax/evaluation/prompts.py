"""What the judges are asked, in our own words, or in the official ones from a user's checkout.

The structure is that of the official codes; see docs/evaluation.md. Placeholders stand in braces.
"""

from typing import NamedTuple

# Part of every cached answer and of every result: change a text, and this with it.
VERSION = "balcap-1"
HELPFUL = "You are a helpful assistant."  # the system line of DeCapBench


class Prompts(NamedTuple):
    """The prompts of one benchmark.

    Attributes:
      texts: by name, templates of `str.format`.
      version: ours, or the commit and hash of the official ones.
      official: whether they are the benchmark's own words.
    """

    texts: dict[str, str]
    version: str
    official: bool = False

    def text(self, name: str, **values: str) -> str:
        """A prompt with its places filled."""
        return self.texts[name].format(**values)


_EXTRACT = """\
Split the caption of an image into its atomic facts.

An atomic fact is the smallest statement that can be true or false alone. It says one thing about
one element: that it is there, one attribute, one action, one relation, or one text that can be
read. Where a sentence says several things, write several facts. Reduce a vague or figurative phrase
to what it states. Write each fact as a short full sentence.

Give every object a name of its own, its kind with a number (dog_0, dog_1), when it first appears,
and use that name wherever the object is meant, for its attributes and as the subject of relations.

For each fact say whether it directly describes what the image shows ("relevance": 1), or is a
guess, a judgement, a mood, or a remark beyond that ("relevance": 0).

Leave nothing out: all the facts of the caption together must say what the caption says.

Answer with a JSON list in a ```json block, one object for each fact:
{{"fact": TEXT, "identifier": NAME, "relevance": 1 or 0}}
"identifier" stands only where the fact brings in a new object.

Example 1
Caption: A brown dog and a spotted one chase a red ball across wet grass, full of joy.
```json
[
  {{"fact": "There is a dog_0.", "identifier": "dog_0", "relevance": 1}},
  {{"fact": "The dog_0 is brown.", "relevance": 1}},
  {{"fact": "There is a dog_1.", "identifier": "dog_1", "relevance": 1}},
  {{"fact": "The dog_1 is spotted.", "relevance": 1}},
  {{"fact": "There is a ball_0.", "identifier": "ball_0", "relevance": 1}},
  {{"fact": "The ball_0 is red.", "relevance": 1}},
  {{"fact": "The dog_0 chases the ball_0.", "relevance": 1}},
  {{"fact": "The dog_1 chases the ball_0.", "relevance": 1}},
  {{"fact": "The ball_0 is on grass_0.", "identifier": "grass_0", "relevance": 1}},
  {{"fact": "The grass_0 is wet.", "relevance": 1}},
  {{"fact": "The scene is full of joy.", "relevance": 0}}
]
```

Example 2
Caption: The sign reads "OPEN" in white letters.
```json
[
  {{"fact": "There is a sign_0.", "identifier": "sign_0", "relevance": 1}},
  {{"fact": "The sign_0 reads \\"OPEN\\".", "relevance": 1}},
  {{"fact": "The letters of the sign_0 are white.", "relevance": 1}}
]
```

Example 3
Caption: Seen from above, two cups stand left of a laptop on a desk.
```json
[
  {{"fact": "The image is seen from above.", "relevance": 1}},
  {{"fact": "There are two cups_0.", "identifier": "cups_0", "relevance": 1}},
  {{"fact": "There is a laptop_0.", "identifier": "laptop_0", "relevance": 1}},
  {{"fact": "The cups_0 are left of the laptop_0.", "relevance": 1}},
  {{"fact": "There is a desk_0.", "identifier": "desk_0", "relevance": 1}},
  {{"fact": "The cups_0 stand on the desk_0.", "relevance": 1}},
  {{"fact": "The laptop_0 stands on the desk_0.", "relevance": 1}}
]
```

Example 4
Caption: It may be morning, which would explain the empty street.
```json
[
  {{"fact": "It may be morning.", "relevance": 0}},
  {{"fact": "The street_0 is empty.", "identifier": "street_0", "relevance": 1}},
  {{"fact": "Morning would explain that the street_0 is empty.", "relevance": 0}}
]
```

Example 5
Caption: A woman in a blue coat holds a child's hand.
```json
[
  {{"fact": "There is a woman_0.", "identifier": "woman_0", "relevance": 1}},
  {{"fact": "The woman_0 wears a coat_0.", "identifier": "coat_0", "relevance": 1}},
  {{"fact": "The coat_0 is blue.", "relevance": 1}},
  {{"fact": "There is a child_0.", "identifier": "child_0", "relevance": 1}},
  {{"fact": "The woman_0 holds the hand of the child_0.", "relevance": 1}}
]
```

Now the caption to split:
{caption}"""

_MATCH = """\
Two lists of atomic facts about one image are given: predicted facts, taken from a caption, and
oracle facts, written by people. For each predicted fact find the oracle fact that says the same.

Two facts say the same where they state the same attribute, action or relation of the same object,
in whatever words. Names of objects may differ between the lists; tell by what the facts say which
objects are the same. A predicted fact matches at most one oracle fact, the nearest one; several may
match the same one. Do not match facts that are about the same object but say different things.

Answer with a JSON list in a ```json block that holds every predicted fact once, its words
unchanged: {{"fact": TEXT, "identifier": NAME where it is given, "matched_oracle_id": the "id" of
the oracle fact, or "None" where none says the same}}

Predicted facts:
{predicted_atomic_facts}

Oracle facts:
{oracle_atomic_facts}"""

_VERIFY = """\
An image, a reference caption of it and a list of atomic facts are given. For each fact say whether
it is true of the image: "verification": 1 where the image shows it or the reference caption states
it, 0 where it is wrong or neither supports it. What the reference does not mention can still be
true: then look at the image. Judge each fact alone, in all that it says.

Answer with a JSON list in a ```json block that holds every fact once, its words unchanged:
{{"fact": TEXT, "identifier": NAME where it is given, "verification": 1 or 0}}

Reference caption:
{reference_caption}

Facts:
{atomic_facts}"""

DCSCORE = Prompts(
    {"system": HELPFUL, "extract": _EXTRACT, "match": _MATCH, "verify": _VERIFY}, VERSION
)

CAPTIONQA = Prompts(
    {
        "system": "You answer a multiple-choice question about an image that you cannot see, by "
        "its caption alone. Reply with the letter of one option (A, B, C, ...) and nothing else.",
        "user": "Caption:\n{caption}\n\nQuestion:\n{question}\n\nOptions:\n{options}\n\nAnswer:",
    },
    VERSION,
)

CAPARENA = Prompts(
    {
        "system": """\
You compare two captions of an image that is shown to you, together with a reference caption that a
person wrote, and decide which caption is the better one.

1. Precision: what a caption says must fit the image in objects, colours, counts, positions and
poses.
2. Informativeness: what matters most in the image should be told, and told specifically. Nobody can
tell everything, so weigh what is important.
3. Hallucination: things in a caption that are plainly not in the image weigh heavily against it.
4. Detail: small differences count; look closely before you decide.
5. Assistance: think of a blind reader whom the caption has to serve. Which one would help more?
6. Reverse thinking: imagine the picture that each caption alone would make you draw. Which is
nearer to the image?
7. Ties: where you truly cannot say which is better, a tie is allowed.

These are guides; the decision is your own judgement of the whole.

The reference is correct but not complete: use it where you are unsure of what the image shows, and
do not count it against a caption that it tells something else that is true.

Answer in two lines:
Reason: your thoughts
Judgment: one of the three: Caption 1 is better / Caption 2 is better / Tie""",
        "user": "Caption 1:\n{caption_1}\n\nCaption 2:\n{caption_2}\n\nReference caption:\n"
        "{caption_ref}\n\nWhich caption is better? Answer in the two lines of the format. Call it "
        "a tie only if it is truly hard to tell them apart in quality, detail and precision.",
    },
    VERSION,
)
