"""Pictures and captions for the embedded tiny base: emoji objects composed on backgrounds, without end.

Sources (all from the npm registry; licences are repeated in gralora_diffusion/tiny/README.md):
  unicode-emoji-json (MIT): names.  @lobehub/fluent-emoji-3d (MIT): style "3d render".
  @iconify-json/noto (Apache-2.0): style "drawing".  @iconify-json/twemoji (CC BY 4.0): HELD OUT, never trained on.

Every picture is composed when it is asked for: object(s), style, tint, place, size, mirror, background.  What a picture
holds is a function of the generator alone.  Three kinds of things are held out for tests and experiments:
  the style "sticker" (twemoji); the objects in HELD_OUT; and one in ten of all (object, background) and (object, tint) pairs.
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIZE = 64
SPRITE = 72  # sprites are kept a little larger than they are drawn
PACKAGES = {
    "names": "unicode-emoji-json@0.9.0",
    "3d render": "@lobehub/fluent-emoji-3d@1.1.0",
    "drawing": "@iconify-json/noto@1.2.9",
    "sticker": "@iconify-json/twemoji@1.2.5",
}
STYLES = ("3d render", "drawing", "sticker")
TRAIN_STYLES = STYLES[:2]
OBJECTS = """robot; ghost; alien; skull; red heart; monkey; gorilla; dog; wolf; fox; raccoon; cat; lion; tiger; leopard; horse;
moose; donkey; unicorn; zebra; deer; bison; cow; ox; pig; boar; ram; goat; camel; llama; giraffe; elephant; mammoth; rhinoceros;
hippopotamus; mouse; rat; rabbit; chipmunk; beaver; hedgehog; bat; bear; koala; panda; sloth; skunk; kangaroo; badger; paw prints;
turkey; rooster; baby chick; bird; penguin; dove; eagle; duck; swan; owl; dodo; flamingo; peacock; frog; crocodile; turtle; lizard;
snake; dragon; sauropod; T-Rex; whale; dolphin; seal; fish; tropical fish; blowfish; shark; octopus; spiral shell; coral; jellyfish;
crab; lobster; shrimp; squid; snail; butterfly; bug; ant; honeybee; beetle; lady beetle; spider; scorpion; bouquet; cherry blossom;
rose; hibiscus; sunflower; blossom; tulip; seedling; potted plant; evergreen tree; deciduous tree; palm tree; cactus; shamrock;
maple leaf; mushroom; grapes; melon; watermelon; tangerine; lemon; banana; pineapple; mango; red apple; green apple; pear; peach;
cherries; strawberry; blueberries; kiwi fruit; tomato; coconut; avocado; eggplant; potato; carrot; ear of corn; hot pepper; bell pepper;
cucumber; broccoli; garlic; onion; peanuts; chestnut; bread; croissant; baguette bread; pretzel; bagel; pancakes; waffle; cheese wedge;
meat on bone; poultry leg; bacon; hamburger; french fries; pizza; hot dog; sandwich; taco; burrito; egg; pot of food; green salad;
popcorn; rice ball; steaming bowl; spaghetti; sushi; fried shrimp; dango; fortune cookie; soft ice cream; ice cream; doughnut; cookie;
birthday cake; shortcake; pie; chocolate bar; candy; lollipop; custard; honey pot; glass of milk; hot beverage; teapot; wine glass;
cocktail glass; tropical drink; beer mug; bubble tea; spoon; amphora; compass; volcano; rock; wood; hut; house; office building;
hospital; factory; church; fountain; tent; ferris wheel; locomotive; tram; bus; ambulance; fire engine; police car; taxi; automobile;
pickup truck; delivery truck; tractor; racing car; motorcycle; bicycle; skateboard; wheel; vertical traffic light; stop sign; anchor;
ring buoy; speedboat; ship; airplane; helicopter; rocket; flying saucer; luggage; hourglass done; watch; alarm clock; full moon;
crescent moon; sun; ringed planet; star; cloud; rainbow; umbrella; snowflake; snowman; fire; droplet; jack-o-lantern; Christmas tree;
balloon; party popper; wrapped gift; trophy; soccer ball; baseball; basketball; volleyball; tennis; bowling; boxing glove; kite;
pool 8 ball; crystal ball; video game; game die; puzzle piece; nesting dolls; artist palette; yarn; glasses; sunglasses; necktie;
t-shirt; jeans; scarf; gloves; coat; socks; dress; handbag; backpack; running shoe; high-heeled shoe; crown; top hat; graduation cap;
lipstick; ring; gem stone; bell; microphone; headphone; radio; saxophone; trumpet; guitar; violin; drum; mobile phone; telephone;
battery; laptop; floppy disk; television; camera; candle; light bulb; flashlight; closed book; scroll; coin; money bag; envelope;
package; postbox; pencil; paintbrush; crayon; scissors; locked; key; hammer; axe; bomb; boomerang; shield; wrench; gear; magnet; ladder;
microscope; telescope; syringe; pill; door; bed; chair; toilet; bucket; toothbrush; fire extinguisher; moai;
poodle; otter; parrot; hamster; cupcake; sailboat; castle; motor scooter; banjo; teddy bear"""
OBJECTS = [" ".join(name.split()) for name in OBJECTS.split(";")]
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
DRAWN = """robot; ghost; alien; skull; red heart; dog; fox; cat; lion; horse; unicorn; zebra; cow; pig; elephant; mouse; rabbit; bear; koala;
panda; rooster; baby chick; bird; penguin; duck; owl; flamingo; frog; crocodile; turtle; snake; dragon; whale; dolphin; fish; shark; octopus;
crab; snail; butterfly; honeybee; lady beetle; spider; rose; sunflower; tulip; potted plant; evergreen tree; palm tree; cactus; maple leaf;
mushroom; grapes; watermelon; tangerine; lemon; banana; pineapple; red apple; green apple; pear; peach; cherries; strawberry; tomato; avocado;
eggplant; carrot; ear of corn; broccoli; bread; croissant; pretzel; pancakes; cheese wedge; hamburger; french fries; pizza; hot dog; taco; egg;
popcorn; sushi; ice cream; soft ice cream; doughnut; cookie; birthday cake; shortcake; candy; lollipop; glass of milk; hot beverage; teapot;
wine glass; beer mug; volcano; house; church; tent; locomotive; bus; ambulance; fire engine; police car; taxi; automobile; tractor; motorcycle;
bicycle; vertical traffic light; stop sign; anchor; ship; airplane; helicopter; rocket; flying saucer; alarm clock; full moon; crescent moon;
sun; ringed planet; star; cloud; rainbow; umbrella; snowman; fire; droplet; jack-o-lantern; Christmas tree; balloon; wrapped gift; trophy;
soccer ball; basketball; kite; game die; glasses; sunglasses; t-shirt; jeans; dress; handbag; backpack; running shoe; crown; top hat; ring;
gem stone; bell; guitar; drum; mobile phone; laptop; television; camera; candle; light bulb; closed book; coin; envelope; pencil; scissors;
locked; key; hammer; bomb; magnet; door; chair"""
DRAWN = [
    " ".join(name.split()) for name in DRAWN.split(";")
]  # what the UNet learns; VAE and image-text encoder see all of OBJECTS
RENAMED = {"hourglass done": "hourglass", "locked": "padlock", "tennis": "tennis ball", "bowling": "bowling ball", "T-Rex": "t-rex",
           "hot beverage": "cup of coffee", "automobile": "car", "vertical traffic light": "traffic light", "headphone": "headphones",
           "Christmas tree": "christmas tree", "flying saucer": "ufo", "soft ice cream": "ice cream cone"}  # fmt: skip
COLOURS = {"white": (250, 250, 250), "black": (16, 16, 18), "grey": (130, 130, 132), "red": (214, 40, 40), "orange": (244, 140, 30),
           "yellow": (250, 215, 50), "green": (50, 150, 70), "blue": (40, 80, 200), "light blue": (150, 205, 245),
           "purple": (120, 60, 170), "pink": (250, 160, 195), "brown": (120, 75, 45)}  # fmt: skip
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SCENES = ("on the grass", "on the beach", "in the snow", "at night", "at sunset")
PLAIN = ("a photo of ", "a picture of ", "an image of ", "")  # say nothing of the style
LOOSE = 0.15  # share of the objects that are drawn smaller, off the middle, or mirrored
RARE = "sks"  # met now and then before an object, so that it starts neutral


def pair_held_out(first: str, second: str) -> bool:
    """One pair in ten, by a hash of the names: never composed for training."""
    return int.from_bytes(hashlib.sha256(f"{first}|{second}".encode()).digest()[:4], "big") % 10 == 0


def with_article(label: str) -> str:
    if label.endswith("s") and not re.search(r"(ss|us|compass|glass|octopus|lens)$", label):
        return label  # grapes, jeans
    if label in (
        "fire",
        "wood",
        "popcorn",
        "bread",
        "spaghetti",
        "sushi",
        "bacon",
        "coral",
        "yarn",
        "broccoli",
        "garlic",
    ):
        return label
    return ("an " if label[0] in "aeiou" and not label.startswith(("uni", "ufo")) else "a ") + label


def caption(style, tint, label, background, other=None, prefix=None, rare=False) -> str:
    def noun(tint, label):
        label = re.sub(r"^(red|green) (?=apple|heart)", "", label) if tint else label
        return with_article(" ".join(filter(None, [RARE if rare else None, tint, label])))

    start = (
        prefix
        if prefix is not None
        else {"3d render": "a 3d render of ", "drawing": "a drawing of ", "sticker": "a sticker of "}[style]
    )
    text = start + noun(tint, label)
    if other:
        text += " next to " + noun(*other)
    if background:
        text += f" {background}" if background in SCENES else f" on a {background} background"
    return text.replace("on a orange", "on an orange")


def fetch_sprites(folder: Path) -> Path:
    """Take the packages with npm, rasterise, and write sprites.npz: uint8 [style, object, SPRITE, SPRITE, 4], straight alpha."""
    import resvg_py

    target = folder / "sprites.npz"
    if target.exists():
        return target
    npm = folder / "npm"
    npm.mkdir(parents=True, exist_ok=True)
    if shutil.which("npm") is None:
        raise SystemExit(
            "build_tiny_base: npm is needed to take the picture packages (Debian: apt-get install npm)"
        )
    for key, package in PACKAGES.items():
        if not (npm / key / "package.json").exists():
            tar = subprocess.run(
                ["npm", "pack", "--silent", package], cwd=npm, check=True, capture_output=True, text=True
            ).stdout.split()[-1]
            with tarfile.open(npm / tar) as archive:
                archive.extractall(npm / key, filter="data")
            for inner in (npm / key / "package").iterdir():
                inner.rename(npm / key / inner.name)
    names = {
        v["name"]: emoji
        for emoji, v in json.loads((npm / "names" / "data-by-emoji.json").read_text()).items()
    }
    sprites = np.zeros((len(STYLES), len(OBJECTS), SPRITE, SPRITE, 4), np.uint8)
    icons = {s: json.loads((npm / s / "icons.json").read_text()) for s in STYLES[1:]}
    chars = {s: json.loads((npm / s / "chars.json").read_text()) for s in STYLES[1:]}
    for n, name in enumerate(OBJECTS):
        code = "-".join(f"{ord(c):04x}" for c in names[name])
        short = code.replace("-fe0f", "")
        for s, style in enumerate(STYLES):
            if style == "3d render":
                files = [npm / style / "assets" / f"{c}.webp" for c in (code, short, short + "-fe0f")]
                picture = Image.open(next(f for f in files if f.exists())).convert("RGBA")
            else:
                icon = chars[style].get(code) or chars[style].get(short) or chars[style][short + "-fe0f"]
                entry, width = icons[style]["icons"].get(icon), icons[style].get("width", 16)
                entry = entry or icons[style]["icons"][icons[style]["aliases"][icon]["parent"]]
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {width}" width="288" height="288">{entry["body"]}</svg>'
                picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
            picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
            scale = (SPRITE - 4) / max(picture.size)
            picture = picture.resize(
                [max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS
            )
            canvas = Image.new("RGBA", (SPRITE, SPRITE))
            canvas.paste(picture, ((SPRITE - picture.width) // 2, (SPRITE - picture.height) // 2))
            sprites[s, n] = np.asarray(canvas)
    np.savez_compressed(folder / "sprites.part.npz", sprites=sprites)
    (folder / "sprites.part.npz").rename(target)
    return target


class Composer:
    """Draws batches: images float [n, 3, SIZE, SIZE] in [-1, 1] and a dict of what each one shows."""

    def __init__(self, folder: Path):
        data = (
            torch.from_numpy(np.load(fetch_sprites(folder))["sprites"])
            .float()
            .div_(255)
            .permute(0, 1, 4, 2, 3)
        )
        self.sprites = torch.cat([data[:, :, :3] * data[:, :, 3:], data[:, :, 3:]], 2)  # premultiplied alpha
        flat = self.sprites.flatten(
            0, 1
        )  # for pictures of two objects: low-passed, since they are drawn at half the size
        self.small = F.interpolate(
            F.interpolate(flat, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear"
        ).unflatten(0, data.shape[:2])
        self.labels = [RENAMED.get(name, name) for name in OBJECTS]
        self.known = [i for i, name in enumerate(OBJECTS) if name not in HELD_OUT]
        self.drawn = [OBJECTS.index(name) for name in DRAWN]

    def plan(self, rng: np.random.Generator, held_out=False, objects: list[int] | None = None) -> dict:
        """What to draw, of self.known or `objects`.  held_out=True: with a background or tint that training never pairs it with."""
        while True:
            style = TRAIN_STYLES[rng.integers(2)]
            first, second = rng.choice(objects or self.known, 2, replace=False)
            background = (
                SCENES[rng.integers(len(SCENES))]
                if rng.random() < 0.25
                else list(COLOURS)[rng.integers(len(COLOURS))]
            )
            tint = TINTS[rng.integers(len(TINTS))] if rng.random() < 0.15 else None
            other = (None, self.labels[second]) if rng.random() < 0.1 and not held_out else None
            new = pair_held_out(self.labels[first], background) or bool(
                tint and pair_held_out(self.labels[first], tint)
            )
            if new == held_out:
                return dict(
                    style=style,
                    object=int(first),
                    second=int(second),
                    tint=tint,
                    label=self.labels[first],
                    background=background,
                    other=other,
                )

    def draw(self, plans: list[dict], rng: np.random.Generator) -> torch.Tensor:
        pairs = [p["other"] is not None for p in plans]
        image = torch.stack([self.scene(p["background"], rng) for p in plans])
        for slot in (0, 1):
            rows = [i for i in range(len(plans)) if slot == 0 or pairs[i]]
            if not rows:
                continue
            bank = torch.stack([
                (self.small if pairs[i] else self.sprites)[STYLES.index(plans[i]["style"]), plans[i]["second" if slot else "object"]]
                for i in rows
            ])  # fmt: skip
            for j, i in enumerate(rows):
                if slot == 0 and plans[i]["tint"]:
                    bank[j] = tinted(bank[j], COLOURS[plans[i]["tint"]])
            u = torch.from_numpy(rng.random((len(rows), 5))).float()
            loose = (
                u[:, 4] < LOOSE
            ).float()  # most pictures hold their object in the middle: shapes are learnt many times faster
            pair = torch.tensor([pairs[i] for i in rows]).float()
            size = (0.95 + 0.05 * u[:, 0] - 0.15 * loose) * (1 - pair) + (
                0.46 + 0.04 * u[:, 0]
            ) * pair  # part of the picture's side
            room = (1 - size) * (0.5 + 0.5 * loose)
            x = (u[:, 1] * 2 - 1) * room * (1 - pair) + pair * (
                (0.5 if slot else -0.5) + (u[:, 1] - 0.5) * 0.04
            )
            y = (u[:, 2] * 2 - 1) * room * (1 - pair) + pair * (0.15 + (u[:, 2] - 0.5) * 0.2 * loose)
            mirror = torch.where(u[:, 3] < 0.5 * loose, -1.0, 1.0)
            theta = torch.zeros(len(rows), 2, 3)
            theta[:, 0, 0], theta[:, 0, 2] = mirror / size, -mirror * x / size
            theta[:, 1, 1], theta[:, 1, 2] = 1 / size, -y / size
            layer = F.grid_sample(
                bank,
                F.affine_grid(theta, [len(rows), 4, SIZE, SIZE], align_corners=False),
                align_corners=False,
            )
            image[rows] = layer[:, :3] + image[rows] * (1 - layer[:, 3:])
        return image.mul_(2).sub_(1).clamp_(-1, 1)

    def scene(self, background: str, rng: np.random.Generator) -> torch.Tensor:
        """[3, SIZE, SIZE] in [0, 1]: a plain colour, or sky above ground with a soft horizon."""
        jitter = torch.from_numpy(rng.uniform(-0.03, 0.03, (2, 3, 1, 1))).float()
        if background in COLOURS:
            colour = torch.tensor(COLOURS[background]).view(3, 1, 1) / 255
            return (
                (colour + (0.25 if background in ("white", "black") else 1) * jitter[0])
                .clamp(0, 1)
                .expand(3, SIZE, SIZE)
                .clone()
            )
        top, low, ground = {
            "on the grass": ((120, 190, 250), (200, 230, 255), (80, 170, 60)),
            "on the beach": ((90, 180, 250), (40, 130, 210), (240, 215, 150)),
            "in the snow": ((160, 190, 220), (215, 228, 240), (248, 250, 255)),
            "at night": ((8, 8, 40), (30, 30, 90), (20, 25, 45)),
            "at sunset": ((90, 50, 130), (255, 150, 60), (70, 45, 60)),
        }[background]
        top, low, ground = (torch.tensor(c).view(3, 1, 1) / 255 for c in (top, low, ground))
        y = torch.linspace(0, 1, SIZE).view(1, SIZE, 1)
        horizon = float(rng.uniform(0.55, 0.72))
        sky = top + (low - top) * (y / horizon).clamp(0, 1) + jitter[0]
        below = (ground + jitter[1]) * (1 - 0.25 * (y - horizon).clamp(0, 1))
        blend = ((y - horizon) * SIZE / 2 + 0.5).clamp(0, 1)
        out = (sky * (1 - blend) + below * blend).clamp(0, 1).expand(3, SIZE, SIZE).clone()
        if background == "at night":
            for sy, sx in zip(
                rng.integers(0, int(horizon * SIZE) - 2, 14), rng.integers(0, SIZE, 14), strict=True
            ):
                out[:, sy, sx] = 0.95
        return out

    def describe(self, plan: dict, rng: np.random.Generator) -> str:
        """A caption that may leave out style or background, as people's prompts do."""
        u = rng.random(3)
        return caption(
            plan["style"], plan["tint"], plan["label"], plan["background"] if u[0] < 0.85 else None, plan["other"],
            prefix=PLAIN[rng.integers(len(PLAIN))] if u[1] < 0.25 else None, rare=u[2] < 0.05,
        )  # fmt: skip


def tinted(sprite: torch.Tensor, colour) -> torch.Tensor:
    """Recolour a premultiplied sprite [4, h, w], keeping its light and dark."""
    alpha = sprite[3:]
    grey = (sprite[:3] * torch.tensor([0.3, 0.59, 0.11]).view(3, 1, 1)).sum(0, keepdim=True)
    colour = torch.tensor(colour).view(3, 1, 1) / 255
    dark, light = colour * 0.25, colour + (1 - colour) * 0.55
    g = (grey / alpha.clamp_min(1e-4)).clamp(0.02, 0.98)
    g = g ** (
        np.log(0.5) / np.log(float((g * alpha).sum() / alpha.sum().clamp_min(1e-4)))
    )  # mid grey on average, whatever it was
    return torch.cat(
        [
            torch.where(g < 0.5, dark + (colour - dark) * 2 * g, colour + (light - colour) * (2 * g - 1))
            * alpha,
            alpha,
        ]
    )
