"""Vocabulary of the synthetic corpus: emotions, cues, sentences and templates of captions."""

from __future__ import annotations

EMOTIONS = ("happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt")
# Emotion -> its groups of face and tone, each 0 to 2. The groups of topic and motion follow from them (`corpus._groups`).
FACE_TONE = {
    "surprise": (0, 0), "contempt": (0, 1), "happy": (0, 2), "angry": (1, 0), "doubt": (1, 1), "worried": (1, 2),
    "fear": (2, 0), "neutral": (2, 1), "sad": (2, 2),
}  # fmt: skip
VALENCE = dict(zip(EMOTIONS, (2.0, -1.6, 0.0, -1.4, -1.0, 0.5, -1.8, -0.8, -0.4), strict=True))
# Three groups of facial cues: (action unit, two descriptions).
FACES = (
    (("AU06", "raised cheeks", "lifted cheeks"), ("AU12", "raised lip corners", "lip corners pulled up"),
     ("AU14", "a dimple", "a dimpled cheek"), ("AU02", "lifted outer brows", "raised outer brows")),
    (("AU04", "lowered brows", "brows drawn together"), ("AU07", "tight eyelids", "narrow eyelids"),
     ("AU23", "tight lips", "lips pressed together"), ("AU17", "a raised chin", "a chin pushed up")),
    (("AU01", "lifted inner brows", "raised inner brows"), ("AU15", "lowered lip corners", "lip corners pulled down"),
     ("AU20", "stretched lips", "lips pulled sideways"), ("AU43", "drooping eyelids", "half closed eyes")),
)  # fmt: skip
TONES = (("loud", "fast", "sharp"), ("level", "dry", "slow"), ("soft", "wavering", "warm"))
MOTIONS = (("leans back", "tilts the head", "stops"), ("faces the camera", "stands upright", "leans forward"),
           ("looks aside", "turns away", "steps backward"))  # fmt: skip
TOPICS = ("the words bring news", "the words judge what someone did", "the words describe a plan")
# Topic -> frames and fillers. Each frame with each filler is a sentence.
SENTENCES = (
    (("The {} arrived this morning", "They told me the {} is here", "I just heard about the {}",
      "Look, the {} is on the table", "Somebody called about the {}", "There is a message with the {}"),
     ("letter", "parcel", "ticket", "invoice", "contract", "newspaper")),
    (("{} left without a word", "{} forgot our meeting again", "{} took the last chair",
      "That is what {} said to me", "I saw what {} did", "{} never called back"),
     ("my brother", "the manager", "our neighbour", "my old friend", "the driver", "that teacher")),
    (("We will {} next week", "I am going to {} soon", "They want me to {}",
      "Tomorrow I have to {}", "You and I could {}", "Maybe we {} this year"),
     ("move to the coast", "start a new job", "travel north", "sell the house", "meet the doctor", "sing on stage")),
)  # fmt: skip
# Descriptions of uninformative channels.
HIDDEN = {"face": "a half hidden face", "motion": "keeps still", "tone": "muffled", "topic": "the words say little"}
FILLER_SENTENCES = ("Yes, well, you know", "All right then", "So here we are", "Okay, let me think", "")
# A coarse caption contains one facial cue, the tone and the topic. A fine caption contains all facial cues and also the motion.
COARSE = (
    "The picture shows {cue}. The voice is {tone} and {topic}. This suggests {emotion}.",
    "There is {cue}. The voice sounds {tone} and {topic}. The feeling is {emotion}.",
    "We see {cue} and hear a {tone} voice. Since {topic}, the state is {emotion}.",
)
FINE = (
    "In the video, {face} can be seen and the person {motion}. The tone of voice is {tone}, and {topic}. "
    + "Taken together, these clues lead to {emotion} as the emotion.",
    "The face shows {face}. At the same time the person {motion} and speaks in a {tone} way. "
    + "Since {topic}, the emotion of the person is most likely {emotion}.",
    "The person {motion} with {face}. The audio carries a {tone} voice, and in the subtitle {topic}. "
    + "All of this points to {emotion}.",
)
README = (
    "Everything in this folder is synthetic: a program (seed {seed}) invented names, sentences, labels, captions and\n"
    "features. They come from no person and no recording; results on them say nothing about real data. train/: two\n"
    "lists. test/: unseen clips; test_shuffled/: with other clips' features and sentences; test_sentence_only/: none.\n"
)
