"""What a scene can hold: objects with their names, shapes, colours and backgrounds.

Every object has names and descriptions that captions may use in training, and others held out for the splits
`synonyms` and `indirect`. Artwork: OpenMoji, CC BY-SA 4.0, found by the code point of each emoji.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One drawable object: its OpenMoji code point and the words for it.

    `names` and `descriptions` occur in training; `synonyms` and `held_out_descriptions` never do.
    A description is a noun phrase that avoids the name.
    """

    codepoint: str
    names: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    held_out_descriptions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name used in training captions."""
        return self.names[0]


def _thing(
    codepoint: str, names: str, synonyms: str = "", descriptions: str = "", held_out_descriptions: str = ""
) -> Thing:
    def split(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(";") if part.strip())

    return Thing(
        codepoint=codepoint,
        names=split(names),
        synonyms=split(synonyms),
        descriptions=split(descriptions),
        held_out_descriptions=split(held_out_descriptions),
    )


# fmt: off
CORE_THINGS: tuple[Thing, ...] = (
    _thing("1F697", "car", "automobile; sedan", "the vehicle with four wheels", "what you drive to work on the road; the machine parked in a garage"),
    _thing("2708", "plane; airplane", "aircraft; jet", "the machine that flies with two wings", "what takes off from an airport; what a pilot flies"),
    _thing("26F5", "sailboat; boat", "yacht; sailing ship", "what sails on the sea", "the vessel that the wind pushes over water; what a sailor steers"),
    _thing("1F682", "train", "locomotive; steam engine", "what runs on rails", "what stops at a railway station; what pulls carriages along a track"),
    _thing("1F680", "rocket", "spaceship; spacecraft", "what flies to the moon", "what astronauts travel in; what is launched into space"),
    _thing("1F3E0", "house", "home; cottage", "the building where a family lives", "the place with a roof, walls and a front door; what you live in"),
    _thing("1F332", "tree", "pine; fir", "the tall plant with a trunk", "what a forest is made of; what gets decorated at Christmas"),
    _thing("1F344", "mushroom", "toadstool; fungus", "the red cap with white dots", "what grows in damp woods and is not a plant; what you pick in the forest in autumn"),
    _thing("1F34E", "apple", "", "the round red fruit", "the fruit that keeps the doctor away; the fruit that Eve ate; the fruit that fell on Newton"),
    _thing("1F34C", "banana", "plantain", "the long yellow fruit", "the fruit that monkeys like; the curved fruit that you peel"),
    _thing("1F355", "pizza", "", "the slice with cheese and tomato", "the famous dish from Naples in Italy; what is baked with mozzarella and pepperoni"),
    _thing("1F354", "burger", "hamburger; cheeseburger", "the bun with meat in it", "what McDonald's is known for; the fast food eaten with fries"),
    _thing("1F436", "dog; puppy", "hound; canine", "the animal that barks", "man's best friend; the pet that fetches sticks"),
    _thing("1F431", "cat", "kitten; feline", "the pet that says meow", "the pet that catches mice; the animal that purrs"),
    _thing("1F430", "rabbit", "bunny; hare", "the animal with long ears", "the animal that eats carrots and hops; what brings the eggs at Easter"),
    _thing("1F437", "pig", "hog; swine", "the pink farm animal", "the animal that bacon comes from; the farm animal that says oink"),
    _thing("1F438", "frog", "toad; bullfrog", "the green animal that jumps", "what a tadpole turns into; the animal that croaks by the pond"),
    _thing("1F422", "turtle", "tortoise; terrapin", "the slow animal with a shell", "the reptile that hides in its shell; the animal that beat the hare in the race"),
    _thing("1F427", "penguin", "", "the black and white bird", "the bird that cannot fly and lives in Antarctica; the bird that waddles on the ice"),
    _thing("1F41D", "bee", "honeybee; bumblebee", "the insect with stripes", "the insect that makes honey; what buzzes and lives in a hive"),
    _thing("2602", "umbrella", "parasol; brolly", "what you open in the rain", "what keeps you dry on a wet day; what you hold over your head in bad weather"),
    _thing("1F381", "gift", "present; wrapped box", "what you get on your birthday", "what Santa brings; the surprise wrapped in paper with a bow"),
    _thing("1F451", "crown", "tiara; diadem", "what a king wears", "what sits on the head of a queen; the golden sign of royal power"),
    _thing("1F47B", "ghost", "phantom; spook", "the white figure that haunts a house", "the spirit of a dead person; what says boo at Halloween"),
)
MORE_THINGS: tuple[Thing, ...] = (
    _thing("1F353", "strawberry", "", "the red berry with seeds outside", "the berry served with cream at Wimbledon"),
    _thing("1F34B", "lemon", "", "the yellow sour fruit", "the fruit that lemonade is made from"),
    _thing("1F369", "donut", "doughnut", "the fried ring with sugar", "what policemen eat in films"),
    _thing("1F9C0", "cheese", "cheddar; gouda", "what mice like to eat", "what is made from milk and has holes"),
    _thing("1F335", "cactus", "", "the plant with spines", "what grows in the desert and stores water"),
    _thing("1F33B", "sunflower", "", "the tall yellow flower", "the flower that Van Gogh painted in a vase"),
    _thing("1F418", "elephant", "", "the animal with a trunk", "the largest animal on land"),
    _thing("1F40D", "snake", "serpent; viper", "the long animal without legs", "the reptile that slithers and hisses"),
    _thing("1F989", "owl", "", "the bird that hoots", "the bird that is awake at night"),
    _thing("1F986", "duck", "mallard; drake", "the bird that quacks", "the bird that swims on a pond"),
    _thing("1F419", "octopus", "squid", "the animal with eight arms", "the sea animal that squirts ink"),
    _thing("1F577", "spider", "tarantula", "the animal with eight legs", "what spins a web"),
    _thing("1F98B", "butterfly", "moth", "the insect with pretty wings", "what a caterpillar turns into"),
    _thing("1F6B2", "bicycle", "bike; cycle", "what has two wheels and pedals", "what is ridden in the Tour de France"),
    _thing("1F68C", "bus", "coach", "the big vehicle with many seats", "what takes children to school"),
    _thing("1F69C", "tractor", "", "the machine that pulls a plough", "what a farmer drives"),
    _thing("1F4F7", "camera", "", "what takes photos", "what a photographer carries"),
    _thing("1F511", "key", "", "what opens a lock", "what you turn to open a door"),
    _thing("1F4A1", "light bulb", "lamp", "what glows when you switch it on", "what Edison is famous for"),
    _thing("1F3B8", "guitar", "", "the instrument with six strings", "what Jimi Hendrix played"),
    _thing("26BD", "soccer ball", "football", "the ball that you kick", "what is used at the World Cup"),
    _thing("1F388", "balloon", "", "what floats on a string", "what is filled with helium at a party"),
    _thing("1F916", "robot", "android; droid", "the machine that walks and talks", "what R2-D2 is"),
    _thing("26C4", "snowman", "", "the figure made of snow", "what children build in winter with a carrot nose"),
)
# fmt: on

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "diamond")
SHAPE_SVG: dict[str, str] = {
    "circle": '<circle cx="36" cy="36" r="27"/>',
    "square": '<rect x="10" y="10" width="52" height="52"/>',
    "triangle": '<path d="M36 8 L64 60 H8 Z"/>',
    "star": '<path d="M36 6 L45 27 L67 29 L50 44 L55 66 L36 54 L17 66 L22 44 L5 29 L27 27 Z"/>',
    "heart": '<path d="M36 63 C10 44 6 32 8 24 C11 10 29 9 36 23 C43 9 61 10 64 24 C66 32 62 44 36 63 Z"/>',
    "diamond": '<path d="M36 5 L63 36 L36 67 L9 36 Z"/>',
}
SHAPE_COLOURS: dict[str, str] = {
    "red": "#d22f27",
    "orange": "#f1891e",
    "yellow": "#fcea2b",
    "green": "#3f9b2f",
    "blue": "#2460d8",
    "purple": "#8a3fb5",
    "brown": "#7a4a24",
    "white": "#ffffff",
}
BACKGROUNDS: dict[str, str] = {
    "white": "#ffffff",
    "gray": "#9a9a9a",
    "black": "#262626",
    "blue": "#8fc4f2",
    "green": "#9bd99a",
    "pink": "#f6a5c8",
    "yellow": "#f5e69a",
    "purple": "#b9a0e0",
}
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
OPPOSITE: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
COUNT_WORDS: dict[int, str] = {1: "one", 2: "two", 3: "three", 4: "four"}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "big": ("big", "large", "huge"),
}


def things_of(preset_objects: int) -> tuple[Thing, ...]:
    """Return the first `preset_objects` objects: 24 for the `cpu` preset, 48 with hand-written descriptions in all."""
    every = CORE_THINGS + MORE_THINGS
    if not 2 <= preset_objects <= len(every):
        raise ValueError(f"preset_objects: got {preset_objects}, expected 2 to {len(every)}")
    return every[:preset_objects]
