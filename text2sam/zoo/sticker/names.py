"""Names of the 171 stickers that the sticker pair was trained on, in the order of training."""

# fmt: off
NAMES: tuple[str, ...] = (
    "tiger", "rabbit", "cat", "crocodile", "whale", "snail", "snake", "horse", "sheep", "monkey", "rooster", "dog", "pig",
    "elephant", "octopus", "ant", "bee", "ladybug", "fish", "turtle", "bird", "penguin", "koala", "camel", "dolphin",
    "frog", "panda", "crab", "lion", "scorpion", "duck", "bat", "shark", "owl", "fox", "butterfly", "gorilla", "giraffe",
    "zebra", "hedgehog", "kangaroo", "peacock", "parrot", "swan", "flamingo", "spider", "pine tree", "tree", "palm tree",
    "cactus", "rose", "sunflower", "maple leaf", "clover", "mushroom", "potted plant", "tomato", "eggplant", "grapes",
    "watermelon", "orange", "lemon", "banana", "pineapple", "apple", "pear", "cherries", "strawberry", "hamburger",
    "pizza", "hot dog", "taco", "bread", "french fries", "ice cream", "doughnut", "cookie", "lollipop", "cake",
    "croissant", "avocado", "cucumber", "carrot", "broccoli", "pretzel", "sandwich", "cheese", "corn", "popcorn",
    "wine glass", "beer", "teapot", "umbrella", "balloon", "guitar", "trumpet", "violin", "microphone", "crown", "hat",
    "glasses", "shirt", "jeans", "dress", "handbag", "shoe", "boot", "bomb", "light bulb", "book", "camera", "television",
    "telephone", "battery", "key", "lock", "bell", "hammer", "wrench", "axe", "microscope", "candle", "gift", "trophy",
    "chair", "toilet", "door", "bucket", "broom", "basket", "teddy bear", "kite", "toothbrush", "screwdriver", "scarf",
    "socks", "backpack", "anchor", "rocket", "helicopter", "train", "bus", "ambulance", "fire truck", "taxi", "car",
    "tractor", "ship", "sailboat", "bicycle", "motorcycle", "airplane", "house", "castle", "church", "factory", "tent",
    "volcano", "ferris wheel", "skull", "ghost", "robot", "star", "sun", "moon", "fire", "soccer ball", "baseball", "bone",
    "tooth", "feather",
)
# fmt: on
