"""Answers questions with an exported folder, as a user of transformers does, in an interpreter that cannot import emollama.

Arguments: the folder, a JSON file with cases, the JSON file to write, and a program that is run last. A case has lists of
``features`` (slot -> values), ``text`` and ``task``, and a ``layout``.
"""

import json
import runpy
import sys

sys.modules["emollama"] = None  # any import of it raises an ImportError

from transformers import AutoModelForCausalLM, AutoProcessor  # noqa: E402

folder, cases, output, example = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
results = {}
with open(cases, encoding="utf-8") as file:
    for name, case in json.load(file).items():
        inputs = processor(case["features"], text=case["text"], task=case["task"], layout=case["layout"])
        ids = model.generate(**inputs, tokenizer=processor.tokenizer)
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        prompts = [[token for token, used in zip(*row, strict=True) if used] for row in rows]
        results[name] = {"prompts": prompts, "ids": ids.tolist(), "answers": processor.answers(ids)}
with open(output, "w", encoding="utf-8") as file:
    json.dump(results, file)
runpy.run_path(example)
