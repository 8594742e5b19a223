"""A small wheel of English emotion words, made for this project: word -> family, and pairs of neighbouring families.

It is not a complete lexicon: it contains common words of descriptions and labels, with their inflected forms. Words that usually
mean something else in descriptions ("content", "moved", "bright") are left out, and so are expressions ("smile", "tears"), which
are clues.
"""

from __future__ import annotations

_FAMILIES = {
    "joy": """happy happier happiest happily happiness joy joyful joyfully joyous glad gladly cheerful cheerfully cheerfulness
        delight delighted delightedly amused amusement pleased pleasure excited excitedly excitement thrilled elated elation
        enthusiastic enthusiastically enthusiasm merry gleeful gleefully ecstatic overjoyed proud proudly pride enjoyment
        enjoying optimistic optimism hopeful""",
    "affection": """love loving lovingly affection affectionate affectionately tender tenderly tenderness fond fondly fondness
        caring compassion compassionate sympathy sympathetic grateful gratefully gratitude thankful admiration admiring
        warmth""",
    "calm": """calm calmly calmness relaxed relaxation serene serenity peaceful peacefully tranquil composure relieved relief
        contented contentment satisfied satisfaction comfortable neutral indifferent indifference unconcerned""",
    "interest": """interested interest curious curiously curiosity intrigued fascinated fascination eager eagerly eagerness
        anticipation expectant expectantly inquisitive""",
    "surprise": """surprise surprised surprises surprising surprisingly astonished astonishment amazed amazement shocked shock
        startled stunned incredulous incredulity disbelief awe awed""",
    "doubt": """doubt doubts doubted doubting doubtful doubtfully confused confusion puzzled puzzlement perplexed perplexity
        bewildered bewilderment baffled skeptical skeptically skepticism sceptical sceptically scepticism suspicious
        suspiciously suspicion unsure uncertain uncertainty hesitant hesitantly hesitation distrust""",
    "worry": """worry worries worried worriedly worrying anxious anxiously anxiety nervous nervously nervousness concern
        concerned uneasy uneasily uneasiness unease apprehensive apprehension tense tensely tension stressed stress
        troubled""",
    "fear": """fear fears feared fearful fearfully afraid scared frightened fright terrified terror horrified horror panic
        panicked panicky dread alarmed timid timidly petrified intimidated""",
    "sadness": """sad sadder sadly sadness saddened unhappy unhappily unhappiness sorrow sorrowful sorrowfully grief grieving
        gloomy gloom depressed depression melancholy melancholic miserable misery heartbroken dejected dejection despair
        despairing desperate desperately desperation hopeless hopelessness disappointed disappointment lonely loneliness upset
        distressed distress helpless helplessness aggrieved disheartened discouraged mournful mournfully""",
    "shame": """shame ashamed embarrassed embarrassment humiliated humiliation guilt guilty guiltily remorse remorseful regret
        regretful regretfully awkward awkwardly awkwardness shy shyly shyness bashful apologetic""",
    "anger": """anger angry angrily angrier angered annoyed annoyance irritated irritation irritable furious furiously fury
        rage enraged outraged outrage mad resentful resentment indignant indignantly indignation frustrated frustration
        exasperated exasperation hostile hostility impatient impatiently impatience displeased displeasure dissatisfied
        dissatisfaction offended hatred hate agitated agitation""",
    "disgust": """disgust disgusted disgustedly disgusting revulsion revolted repulsed repulsion aversion loathing sickened
        distaste dislike""",
    "contempt": """contempt contemptuous contemptuously disdain disdainful disdainfully scorn scornful scornfully mocking
        mockingly mockery derisive derision condescending condescension sarcastic sarcastically sarcasm ridicule arrogant
        arrogance""",
}
_NEIGHBOURS = """joy affection, joy calm, joy interest, interest surprise, surprise doubt, surprise fear, doubt worry, worry fear,
    worry sadness, sadness shame, anger disgust, anger contempt, disgust contempt"""

NEIGHBOUR = 0.5  # nearness of neighbouring families
FAMILY = {word: family for family, words in _FAMILIES.items() for word in words.split()}
_PAIRS = {frozenset(pair.split()) for pair in _NEIGHBOURS.split(",")}


def nearness(family: str, other: str) -> float:
    """Return the nearness of two families: 1 for equal, NEIGHBOUR for neighbouring, 0 for other families."""
    if family == other:
        return 1.0
    return NEIGHBOUR if {family, other} in _PAIRS else 0.0
