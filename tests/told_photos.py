"""Photos that never were, each told by five people: what searches for constant captions and attacks
run on where no real data are. All text is the project's own.
"""

from captions import NO_IMAGE

from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Example

_TOLD = """
A brown dog leaps over a log in the forest.
A dog jumps over a fallen tree.
The dog is jumping across a log in the woods.
A dog with a red collar leaps over wood.
A brown dog in midair above a tree trunk.

Two girls in swimsuits jump in the waves.
Two young girls splash in the sea.
Girls are playing in the water at the beach.
Two children run through shallow water.
A pair of girls enjoy the ocean on a sunny day.

A man in a black suit reads a newspaper on a train.
A businessman sits in a train with a newspaper.
A man is reading while he rides the subway.
A man in a suit and tie sits by the window.
A man reads the paper on a train.

A woman in a red coat crosses a snowy street.
A lady walks across the road in the snow.
A woman with an umbrella is crossing the street.
A person in a red jacket walks through snow.
A woman walks past parked cars in winter.

A cyclist in yellow races down a mountain road.
A man rides a bicycle on a steep road.
A bike rider wearing a yellow shirt and a helmet.
The cyclist is speeding down a hill.
A man in a yellow jersey is riding his bike.

A baby in a blue hat eats cake.
A small child has cake on his face.
A baby is eating birthday cake with his hands.
A little boy in a high chair eats a chocolate cake.
A toddler covered in frosting sits at a table.

Three men play guitar on a stage.
A band performs a concert.
Musicians stand on a stage with bright lights.
Three guys with guitars sing into microphones.
A rock band plays in front of a crowd.

A white cat sleeps on a wooden chair.
A cat is curled up on a chair.
A white cat naps in the sun on an old chair.
The cat is sleeping beside a window.
A fluffy cat lies on a brown chair.

A soccer player in green kicks the ball.
Two teams play soccer on a field.
A man in a green uniform is kicking a ball.
Football players run after the ball on the grass.
A man in green tries to score a goal.

An old woman sells fruit at a market.
A woman sits behind boxes of apples and oranges.
A vendor with a headscarf sells fruit.
Fruit is for sale at an outdoor market.
An elderly lady waits for customers at her stand.

A red bus drives past a stone church.
A double decker bus is on a city street.
A bus passes an old church.
The red bus is full of people.
A bus travels down the street beside a tall building.

A skateboarder does a trick on a ramp.
A boy jumps with his skateboard.
A teenager in a green shirt rides a skateboard.
A young man is skateboarding in a skate park.
A young man flies above a concrete ramp.

Two horses graze in a green meadow.
A brown horse and a black horse eat grass.
Horses stand in a field by a fence.
Two horses in a pasture with hills behind them.
A pair of horses are eating in a field.

A chef cuts vegetables in a kitchen.
A man in a long apron chops carrots.
A cook is preparing food on a counter.
A man slices vegetables with a large knife.
A man works in a restaurant kitchen.

A boy in a striped shirt flies a kite.
A child runs with a kite on a hill.
A boy holds the string of a colorful kite.
A kid is flying a kite under a blue sky.
A small boy stands with a kite in a field.

A couple dances at a wedding.
A bride and a groom are dancing.
The bride wears a long white dress.
A newly married couple dance on a wooden floor.
Guests watch a bride and groom dance.

A climber hangs from a steep cliff.
A man climbs a rock wall with a rope.
A rock climber in a blue helmet looks down.
A person is climbing a high cliff.
A woman climbs up a rock face.

Four people sit around a campfire at night.
Friends are camping in the woods.
A group of people warm their hands at a fire.
People sit near a tent and a fire.
Several campers talk by the fire in the dark.

A yellow boat floats on a calm lake.
A small boat is tied to a dock.
A rowing boat on the water in front of mountains.
A yellow boat lies beside a wooden pier.
An empty boat on a lake.

A girl in a pink dress blows bubbles.
A little girl plays with soap bubbles in the garden.
A child is blowing bubbles outside.
A girl with long hair chases bubbles.
A small girl stands on the lawn with bubbles around her.

A surfer rides a huge wave.
A man surfs in the ocean.
A man in a black wetsuit stands on a surfboard.
A surfer balances on a long board.
A man is surfing on a big wave.

Two old men play chess in the park.
Men sit at a table with a chess board.
Two elderly men are playing a game outdoors.
A man with a gray beard moves a chess piece.
Two men in hats sit on a bench and play chess.

A black dog carries a stick through water.
A wet dog swims with a stick in its mouth.
A black dog fetches a stick from a lake.
The dog is swimming toward the shore.
A dog holds a piece of wood in a river.

A woman paints a picture on a sidewalk.
An artist kneels on the ground with chalk.
A woman draws a large face on the pavement.
A street artist works while people watch.
A woman in jeans is drawing with colored chalk.
""".strip()

# The references of each photo, and what the fifth person told of it: the honest caption.
TOLD = tuple(
    (tuple(texts[:4]), texts[4]) for texts in (photo.split("\n") for photo in _TOLD.split("\n\n"))
)
PHOTOS = tuple(
    Example(f"told-{i}", NO_IMAGE, PROMPT, references[0], None, references)
    for i, (references, _) in enumerate(TOLD)
)
HONEST = tuple(caption for _, caption in TOLD)
