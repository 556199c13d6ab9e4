"""Names of the classes of the benchmarks, in the order of their label files."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


VOC = _split(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorbike, person, "
    "potted plant, sheep, sofa, train, tv monitor"
)
"""PASCAL VOC, numbers 1 to 20."""

CONTEXT = _split(
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, ceiling, "
    "chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, keyboard, light, "
    "motorbike, mountain, mouse, person, plate, platform, potted plant, road, rock, sheep, shelves, sidewalk, sign, sky, "
    "snow, sofa, table, track, train, tree, truck, tv monitor, wall, water, window, wood"
)
"""PASCAL Context in the order of labels made with the Detail API, numbers 1 to 59. The authors' ``59_context_labels`` have the
order of their ``59_labels.txt``."""

COCO = _split(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, "
    "tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
    "tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, "
    "hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, "
    "cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
"""COCO's 80 things."""

COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Category numbers between 1 and 91 without a category in COCO."""

COCO_STUFF = COCO + _split(
    "banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, "
    "cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, "
    "floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, "
    "house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, "
    "plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, "
    "skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, "
    "vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, "
    "window-blind, window-other, wood"
)
"""COCO-Stuff's 171: things, then stuff."""

CITYSCAPES = _split(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, "
    "truck, bus, train, motorcycle, bicycle"
)
"""Cityscapes' trainIds 0 to 18."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The labelId of each trainId; the other labelIds, 0 to 33, are ignored."""

ADE = _split(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table, "
    "mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, "
    "fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, "
    "sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, "
    "screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, "
    "stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, "
    "chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, "
    "escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, "
    "swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, "
    "microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"
)
"""ADE20K, numbers 1 to 150."""

NUS_WIDE = _split(
    "airport, animal, beach, bear, birds, boats, book, bridge, buildings, cars, castle, cat, cityscape, clouds, computer, "
    "coral, cow, dancing, dog, earthquake, elk, fire, fish, flags, flowers, food, fox, frost, garden, glacier, grass, harbor, "
    "horses, house, lake, leaf, map, military, moon, mountain, nighttime, ocean, person, plane, plants, police, protest, "
    "railroad, rainbow, reflection, road, rocks, running, sand, sign, sky, snow, soccer, sports, statue, street, sun, sunset, "
    "surf, swimmers, tattoo, temple, tiger, tower, town, toy, train, tree, valley, vehicle, water, waterfall, wedding, "
    "whales, window, zebra"
)
"""NUS-WIDE."""

CAMVID = _split("sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist, unlabelled")
"""CamVid in the layout of SegNet, numbers 0 to 11; the last is ignored."""

POTSDAM = _split("impervious surfaces, building, low vegetation, tree, car, clutter")
"""ISPRS Potsdam, in the order of the benchmark."""

_FOLDERS = _split(
    "n01443537 goldfish, n01491361 tiger shark, n01531178 goldfinch, n01644373 tree frog, n02104029 kuvasz, "
    "n02119022 red fox, n02123597 Siamese cat, n02133161 American black bear, n02165456 ladybug, n02281406 sulphur butterfly, "
    "n02325366 cottontail rabbit, n02342885 hamster, n02396427 wild boar, n02483362 gibbon, n02504458 African elephant, "
    "n02510455 giant panda, n02690373 airliner, n02747177 trash can, n02783161 ballpoint pen, n02814533 station wagon, "
    "n02859443 boathouse, n02917067 bullet train, n02992529 mobile phone, n03014705 chest, n03047690 clog, "
    "n03095699 container ship, n03197337 digital watch, n03201208 dining table, n03445777 golf ball, n03452741 grand piano, "
    "n03584829 iron, n03630383 lab coat, n03775546 mixing bowl, n03791053 motor scooter, n03874599 padlock, "
    "n03891251 park bench, n04026417 purse, n04335435 streetcar, n04380533 table lamp, n04404412 television, "
    "n04447861 toilet seat, n04507155 umbrella, n04522168 vase, n04557648 water bottle, n04562935 water tower, "
    "n04612504 yawl, n06794110 street sign, n07749582 lemon, n07831146 carbonara, n12998815 agaric"
)
IMAGENET_S50 = {wnid: name for wnid, _, name in (pair.partition(" ") for pair in _FOLDERS)}
"""Folder -> name from WordNet of ImageNet-S50; the sorted folders have the numbers 1 to 50."""

COCO_STUFF_WORDING = {
    name: whole if part in ("other", "stuff") else f"{part} {whole}"
    for name, (whole, part) in ((name, name.split("-")) for name in COCO_STUFF if "-" in name)
} | {"window-blind": "window blind", "structural-other": "structure", "solid-other": "solid object"}
"""Wording of COCO-Stuff's names with a hyphen: ``"floor-wood"`` -> "wood floor", ``"sky-other"`` -> "sky"."""
