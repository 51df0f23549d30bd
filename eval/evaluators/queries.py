"""Everyday English that no caption of CIFAR-10 holds, each with the class it means; and words that mean nothing there.

`QUERIES` was written before any text tower was trained on a broad vocabulary. Those at even places are for development,
together with a list written later; those at odd places (`UNSEEN`) are kept from every training choice and give the
published figure.
"""

from __future__ import annotations

QUERIES: tuple[tuple[str, str], ...] = (
    ("passenger jet", "airplane"),
    ("an aircraft taking off", "airplane"),
    ("airplane flying in the sky", "airplane"),
    ("a jet", "airplane"),
    ("warplane", "airplane"),
    ("a propeller driven flying machine", "airplane"),
    ("cessna", "airplane"),
    ("Boeing 747", "airplane"),
    ("sedan", "automobile"),
    ("a hatchback", "automobile"),
    ("sports car", "automobile"),
    ("limousine", "automobile"),
    ("a vehicle for a small family", "automobile"),
    ("race car", "automobile"),
    ("a Volkswagen Beetle", "automobile"),
    ("SUV", "automobile"),
    ("robin", "bird"),
    ("a feathered creature", "bird"),
    ("pigeon", "bird"),
    ("an animal with wings and a beak", "bird"),
    ("a hawk", "bird"),
    ("parrot", "bird"),
    ("seagull", "bird"),
    ("songbirds on a branch", "bird"),
    ("kitty", "cat"),
    ("moggy", "cat"),
    ("a kitten", "cat"),
    ("feline", "cat"),
    ("a purring pet", "cat"),
    ("a Siamese", "cat"),
    ("pussycat", "cat"),
    ("an animal that meows", "cat"),
    ("a doe", "deer"),
    ("an antlered animal", "deer"),
    ("bambi", "deer"),
    ("a buck with antlers", "deer"),
    ("venison on the hoof", "deer"),
    ("white-tailed deer in the forest", "deer"),
    ("a hoofed forest animal", "deer"),
    ("a young deer", "deer"),
    ("pooch", "dog"),
    ("canine", "dog"),
    ("man's best friend that barks", "dog"),
    ("hound", "dog"),
    ("a poodle", "dog"),
    ("a barking pet", "dog"),
    ("terrier", "dog"),
    ("doggy", "dog"),
    ("amphibian", "frog"),
    ("tadpole's parent", "frog"),
    ("a croaking pond animal", "frog"),
    ("tree frog", "frog"),
    ("a green hopping creature", "frog"),
    ("Kermit", "frog"),
    ("froggy", "frog"),
    ("a slimy amphibian", "frog"),
    ("pony", "horse"),
    ("a steed one can ride", "horse"),
    ("equine", "horse"),
    ("a foal", "horse"),
    ("an animal that a jockey rides", "horse"),
    ("bronco", "horse"),
    ("thoroughbred", "horse"),
    ("a galloping mustang", "horse"),
    ("a vessel at sea", "ship"),
    ("yacht", "ship"),
    ("sailboat", "ship"),
    ("a cruise on the ocean", "ship"),
    ("frigate", "ship"),
    ("a watercraft", "ship"),
    ("schooner", "ship"),
    ("battleship", "ship"),
    ("18-wheeler", "truck"),
    ("a pickup", "truck"),
    ("big rig on the highway", "truck"),
    ("a vehicle that hauls heavy cargo by road", "truck"),
    ("flatbed", "truck"),
    ("rubbish collection vehicle", "truck"),
    ("fire brigade vehicle", "truck"),
    ("cement mixer", "truck"),
)

# Written later, for development alone: forty queries tell two towers apart only where they differ much.
FURTHER: dict[str, tuple[str, ...]] = {
    "airplane": (
        "aviation", "glider", "a plane landing on a runway", "Concorde", "a fighter pilot's aircraft",
        "an airline flight", "turboprop", "a flying machine", "Airbus A380", "crop duster", "a private plane",
        "aircraft",
    ),
    "automobile": (
        "a family car", "roadster", "minivan", "a Ferrari", "a parked car", "BMW", "a car on the motorway",
        "Toyota Corolla", "a vintage car", "hybrid car", "a motor vehicle with four seats", "cabriolet",
    ),
    "bird": (
        "owl", "an eagle", "a crow", "chicken", "a duck on a pond", "penguin", "canary", "hummingbird",
        "a bird in flight", "fowl", "a nesting bird", "turkey", "a chirping animal",
    ),
    "cat": (
        "a sleeping cat", "puss", "Persian cat", "a cat on a sofa", "ginger cat", "a pet that catches mice",
        "Garfield", "a whiskered pet", "Burmese cat", "calico", "cats",
    ),
    "deer": (
        "hart", "a deer in the woods", "Rudolph the reindeer", "hind", "a grazing deer", "a herd of deer",
        "a wild ruminant of the forest", "deer hunting", "a spotted fawn", "the moose of Canada",
    ),
    "dog": (
        "labrador", "German shepherd", "beagle", "bulldog", "collie", "a dog on a leash", "greyhound", "dachshund",
        "guard dog", "a sled dog", "an animal that fetches sticks", "puppies",
    ),
    "frog": (
        "croaker", "a frog on a lily pad", "poison dart frog", "ribbit", "a leaping pond dweller", "a warty toad",
        "cane toad", "a jumping animal with webbed feet", "frogs",
    ),
    "horse": (
        "racehorse", "colt", "filly", "a horse in a meadow", "show jumping", "Clydesdale", "a jockey's mount",
        "a saddled animal", "a cavalry mount", "workhorse", "a hoofed riding animal",
    ),
    "ship": (
        "canoe", "a vessel with sails", "cruise liner", "trawler", "a warship", "destroyer", "a boat on the lake",
        "catamaran", "galleon", "submarine", "a harbour vessel", "the Titanic", "kayak",
    ),
    "truck": (
        "the vehicle of a lorry driver", "a truck on the road", "heavy goods vehicle", "Mack truck", "semi-trailer",
        "a moving company's vehicle", "monster truck", "goods vehicle", "cargo van", "a removal lorry", "snow plough",
        "tanker lorry",
    ),
}  # fmt: skip

NOTHING: tuple[str, ...] = (
    "democracy", "justice", "arithmetic", "jealousy", "inflation", "grammar", "philosophy", "Tuesday", "opinion",
    "melody", "theorem", "nostalgia", "a tax return", "the square root of two", "citizenship", "poetry", "algebra",
    "honesty", "banana bread", "a cup of coffee", "wallpaper", "shampoo", "spaghetti", "a birthday cake", "toothbrush",
    "sofa cushions", "a chemistry lesson", "insurance policy", "headache", "mathematics", "cheese", "a piano sonata",
    "curtains", "tomato soup", "keyboard", "a wedding ring", "election results", "vocabulary", "pillow", "broccoli",
)  # fmt: skip

DEVELOPMENT = (*QUERIES[::2], *((query, name) for name, queries in FURTHER.items() for query in queries))
UNSEEN = QUERIES[1::2]
NOTHING_DEVELOPMENT, NOTHING_UNSEEN = NOTHING[::2], NOTHING[1::2]
