"""Train, evaluate and ask a model about a video: ``python examples/api.py CONFIG.yaml VIDEO``."""

from __future__ import annotations

import sys

import emollama


def main(cfg_path: str, video: str) -> None:
    """Train the model of a configuration for one epoch, print its metrics, and print answers about a video."""
    trained = emollama.load(cfg_path, {"run.max_epoch": 1}).train()
    # The model is loaded by the first answer, and freed at the end of the block.
    with trained:
        result = trained.evaluate()
        for name, value in result.metrics.items():
            print(name, "undefined" if value is None else f"{value:.3f}")
        for prediction in result.predictions[:3]:
            print(prediction.name, prediction.task, prediction.prediction)

        first = trained.answer(video, label_probabilities=True)
        print(first.text, first.label_probabilities)
        question = "Which clues speak for it?"
        history = [emollama.Turn(question="", answer=first.text)]
        for piece in trained.stream(video, question=question, history=history):
            print(piece, end="", flush=True)

        # Several requests share the batches of the language model.
        options = emollama.GenerationOptions(temperature=0.7, seed=1)
        requests = [emollama.Request(video=video, task="emotion", mask_slots=[slot], options=options) for slot in trained.engine().slots]
        for answer in trained.engine().answer(requests):
            print(answer.text, answer.finish_reason, answer.timings.generation)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except emollama.UserError as error:
        sys.exit(f"error: {error}")
