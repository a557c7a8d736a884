"""Word lists of the project's own: what WordNet does not say and captions of photos need.

Each list is a set of words of which a thing can have only one (colours, postures, sexes), a class
with its own chance of being true unseen (scenery), or a spelling.
"""

# Read as the word on the right, before anything else is looked up.
SPELLINGS = (
    {word: "person" for word in "people individual human pedestrian".split()}
    | {word: "child" for word in "kid toddler kiddo youngster".split()}
    | {word: "man" for word in "guy gentleman male dude fellow".split()}
    | {word: "woman" for word in "lady female".split()}
    | {"boys": "boy", "girls": "girl", "teen": "teenager", "adolescent": "teenager"}
    | {word: "airplane" for word in "plane aeroplane jet jetliner airliner aircraft".split()}
    | {word: "television" for word in "tv televison telly".split()}
    | {word: "bicycle" for word in "bike bycicle".split()}
    | {word: "motorcycle" for word in "motorbike moped".split()}
    | {word: "phone" for word in "cellphone telephone smartphone".split()}
    | {"cell phone": "phone", "mobile phone": "phone"}
    | {word: "refrigerator" for word in "fridge refridgerator icebox".split()}
    | {"couch": "sofa", "loveseat": "sofa", "tshirt": "shirt", "t-shirt": "shirt", "tee": "shirt"}
    | {"racquet": "racket", "tennis racquet": "tennis racket", "veggie": "vegetable"}
    | {"cupboard": "cabinet"}
    | {"doughnut": "donut", "hotdog": "hot dog", "grey": "gray", "colour": "color"}
    | {"automobile": "car", "auto": "car", "taxi": "cab", "lorry": "truck", "photo": "photograph"}
    | {"picture": "photograph", "pic": "photograph", "shot": "photograph", "snapshot": "photograph"}
    | {"puppy": "dog", "pup": "dog", "doggy": "dog", "kitty": "cat", "kitten": "cat"}
    | {"restroom": "bathroom", "washroom": "bathroom", "lavatory": "bathroom"}
    | {"seashore": "beach", "shore": "beach", "ocean": "sea", "road": "street", "roadway": "street"}
    | {"dining table": "table", "potted plant": "plant", "wineglass": "wine glass"}
    | {"sunglass": "sunglasses", "eyeglass": "glasses", "trouser": "pants", "pant": "pants"}
    | {"jean": "jeans", "remote control": "remote", "laptop computer": "laptop", "lit": "lighted"}
)  # fmt: skip

COLOURS = frozenset(
    """red orange yellow green blue purple pink brown black white gray tan beige gold golden silver
    violet maroon turquoise teal navy cream blond blonde""".split()
)
# Postures of a body: who sits does not stand.
POSTURES = {
    word: posture
    for posture, words in {
        "stand": "stand standing",
        "sit": "sit sitting seated perch",
        "lie": "lie lay lying laying sleep sleeping recline",
        "move": "walk run jump ride fly swim drive ski skate skateboard surf snowboard",
        "kneel": "kneel crouch squat",
    }.items()
    for word in words.split()
}
MALE = frozenset("man boy father son husband groom businessman brother grandfather king".split())
FEMALE = frozenset("woman girl mother daughter wife bride sister grandmother queen mom".split())
YOUNG = frozenset("boy girl child baby infant teenager".split())
PERSONS = MALE | FEMALE | YOUNG | {"person", "adult", "crowd", "family", "couple"}
# Who is meant by these words: WordNet's girls are no children, its men no adults.
WIDER_PERSONS = {"person": PERSONS, "child": YOUNG, "adult": (MALE | FEMALE) - YOUNG}

# Adjectives that are a matter of size or age: seldom wrong, seldom confirmed.
RELATIVE = frozenset(
    """large big small little tall short long young old huge tiny wide high low thick thin
    giant nice beautiful pretty different other own similar close near many several top
    colorful""".split()
)
# Verbs that say that something is there, or where: they add little that could be wrong.
STATIVE = frozenset(
    """be have fill cover top surround contain feature include show depict appear see display place
    position locate situate park set rest line face stand sit hang lie lay look use make get take
    go do come consist accompany visible""".split()
)
# What photos have around their subject and references leave out. WordNet's words whose kinds are
# meant.
SCENERY = frozenset(
    """geological_formation body_of_water land tract region way building room area location sky
    atmospheric_phenomenon woody_plant vegetation grass floor wall table ground furniture structure
    natural_object weather light shadow window door clothing body_part time_period plant_part path
    surface paved_surface flooring covering soil""".split()
)
# Names for anything or anybody at all, beside WordNet's own highest words (`generality.py`): they
# are true of every photo.
ANYTHING = frozenset(
    """object item thing entity element stuff detail something anything everything kind type other
    one someone somebody anyone anybody everyone everybody being material piece place spot
    structure device equipment instrument""".split()
)
# Of a reference they tell that a person is there.
ANYBODY = frozenset("someone somebody anyone anybody everyone everybody".split())

# The 80 classes of COCO's boxes. Whoever drew them drew all of them, so where every label of an
# image is one of these, a class without a box is not in the image.
COCO_CLASSES = frozenset(
    name.replace("_", " ")
    for name in """person bicycle car motorcycle airplane bus train truck boat
    traffic_light fire_hydrant
    stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack
    umbrella handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat
    baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl
    banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant
    bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink
    refrigerator book clock vase scissors teddy_bear hair_drier toothbrush""".split()
)
