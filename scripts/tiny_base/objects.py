"""The objects that images of the embedded base show, by their names in unicode-emoji-json."""


def names(text: str) -> list[str]:
    """The names in a text that separates them by semicolons."""
    return [" ".join(name.split()) for name in text.split(";")]


# The VAE and the image-text encoder are trained on all of them but HELD_OUT.
OBJECTS = names("""
robot; ghost; alien; skull; red heart; monkey; gorilla; dog; wolf; fox; raccoon; cat; lion; tiger;
leopard; horse; moose; donkey; unicorn; zebra; deer; bison; cow; ox; pig; boar; ram; goat; camel; llama;
giraffe; elephant; mammoth; rhinoceros; hippopotamus; mouse; rat; rabbit; chipmunk; beaver; hedgehog; bat;
bear; koala; panda; sloth; skunk; kangaroo; badger; paw prints; turkey; rooster; baby chick; bird;
penguin; dove; eagle; duck; swan; owl; dodo; flamingo; peacock; frog; crocodile; turtle; lizard; snake;
dragon; sauropod; T-Rex; whale; dolphin; seal; fish; tropical fish; blowfish; shark; octopus; spiral
shell; coral; jellyfish; crab; lobster; shrimp; squid; snail; butterfly; bug; ant; honeybee; beetle; lady
beetle; spider; scorpion; bouquet; cherry blossom; rose; hibiscus; sunflower; blossom; tulip; seedling;
potted plant; evergreen tree; deciduous tree; palm tree; cactus; shamrock; maple leaf; mushroom; grapes;
melon; watermelon; tangerine; lemon; banana; pineapple; mango; red apple; green apple; pear; peach;
cherries; strawberry; blueberries; kiwi fruit; tomato; coconut; avocado; eggplant; potato; carrot; ear of
corn; hot pepper; bell pepper; cucumber; broccoli; garlic; onion; peanuts; chestnut; bread; croissant;
baguette bread; pretzel; bagel; pancakes; waffle; cheese wedge; meat on bone; poultry leg; bacon;
hamburger; french fries; pizza; hot dog; sandwich; taco; burrito; egg; pot of food; green salad; popcorn;
rice ball; steaming bowl; spaghetti; sushi; fried shrimp; dango; fortune cookie; soft ice cream; ice
cream; doughnut; cookie; birthday cake; shortcake; pie; chocolate bar; candy; lollipop; custard; honey
pot; glass of milk; hot beverage; teapot; wine glass; cocktail glass; tropical drink; beer mug; bubble
tea; spoon; amphora; compass; volcano; rock; wood; hut; house; office building; hospital; factory; church;
fountain; tent; ferris wheel; locomotive; tram; bus; ambulance; fire engine; police car; taxi; automobile;
pickup truck; delivery truck; tractor; racing car; motorcycle; bicycle; skateboard; wheel; vertical
traffic light; stop sign; anchor; ring buoy; speedboat; ship; airplane; helicopter; rocket; flying saucer;
luggage; hourglass done; watch; alarm clock; full moon; crescent moon; sun; ringed planet; star; cloud;
rainbow; umbrella; snowflake; snowman; fire; droplet; jack-o-lantern; Christmas tree; balloon; party
popper; wrapped gift; trophy; soccer ball; baseball; basketball; volleyball; tennis; bowling; boxing
glove; kite; pool 8 ball; crystal ball; video game; game die; puzzle piece; nesting dolls; artist palette;
yarn; glasses; sunglasses; necktie; t-shirt; jeans; scarf; gloves; coat; socks; dress; handbag; backpack;
running shoe; high-heeled shoe; crown; top hat; graduation cap; lipstick; ring; gem stone; bell;
microphone; headphone; radio; saxophone; trumpet; guitar; violin; drum; mobile phone; telephone; battery;
laptop; floppy disk; television; camera; candle; light bulb; flashlight; closed book; scroll; coin; money
bag; envelope; package; postbox; pencil; paintbrush; crayon; scissors; locked; key; hammer; axe; bomb;
boomerang; shield; wrench; gear; magnet; ladder; microscope; telescope; syringe; pill; door; bed; chair;
toilet; bucket; toothbrush; fire extinguisher; moai; poodle; otter; parrot; hamster; cupcake; sailboat;
castle; motor scooter; banjo; teddy bear
""")

# Never trained on.
HELD_OUT = (
    "poodle",
    "otter",
    "parrot",
    "hamster",
    "cupcake",
    "sailboat",
    "castle",
    "motor scooter",
    "banjo",
    "teddy bear",
)

# The UNet is trained on these only.
UNET_OBJECTS = names("""
robot; ghost; alien; skull; red heart; dog; fox; cat; lion; horse; unicorn; zebra; cow; pig; elephant;
mouse; rabbit; bear; koala; panda; rooster; baby chick; bird; penguin; duck; owl; flamingo; frog;
crocodile; turtle; snake; dragon; whale; dolphin; fish; shark; octopus; crab; snail; butterfly; honeybee;
lady beetle; spider; rose; sunflower; tulip; potted plant; evergreen tree; palm tree; cactus; maple leaf;
mushroom; grapes; watermelon; tangerine; lemon; banana; pineapple; red apple; green apple; pear; peach;
cherries; strawberry; tomato; avocado; eggplant; carrot; ear of corn; broccoli; bread; croissant; pretzel;
pancakes; cheese wedge; hamburger; french fries; pizza; hot dog; taco; egg; popcorn; sushi; ice cream;
soft ice cream; doughnut; cookie; birthday cake; shortcake; candy; lollipop; glass of milk; hot beverage;
teapot; wine glass; beer mug; volcano; house; church; tent; locomotive; bus; ambulance; fire engine;
police car; taxi; automobile; tractor; motorcycle; bicycle; vertical traffic light; stop sign; anchor;
ship; airplane; helicopter; rocket; flying saucer; alarm clock; full moon; crescent moon; sun; ringed
planet; star; cloud; rainbow; umbrella; snowman; fire; droplet; jack-o-lantern; Christmas tree; balloon;
wrapped gift; trophy; soccer ball; basketball; kite; game die; glasses; sunglasses; t-shirt; jeans; dress;
handbag; backpack; running shoe; crown; top hat; ring; gem stone; bell; guitar; drum; mobile phone;
laptop; television; camera; candle; light bulb; closed book; coin; envelope; pencil; scissors; locked;
key; hammer; bomb; magnet; door; chair
""")

# {name: the words of captions}, for names that nobody would type
RENAMED = {
    "hourglass done": "hourglass",
    "locked": "padlock",
    "tennis": "tennis ball",
    "bowling": "bowling ball",
    "T-Rex": "t-rex",
    "hot beverage": "cup of coffee",
    "automobile": "car",
    "vertical traffic light": "traffic light",
    "headphone": "headphones",
    "Christmas tree": "christmas tree",
    "flying saucer": "ufo",
    "soft ice cream": "ice cream cone",
}
