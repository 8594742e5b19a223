"""The notice on intended use, which the documentation, the web page and the model card of an export show."""

from __future__ import annotations

INTENDED_USE = """\
**Intended use.** emollama is software for research on multimodal emotion recognition. It estimates
how the emotion of a person in a recording would be labelled by annotators, and describes the cues
in words. It does not measure what a person feels. Labels and explanations can be wrong, the
probabilities are not calibrated for the people in your recordings, and errors can differ between
groups of people, languages and recording conditions. The explanation of an answer is generated
text. It does not prove that the cues which it mentions are in the recording.

**Consent.** Process recordings of people only if you may: with their informed consent, or on
another legal basis that you have checked. Face, voice and inferred emotions are personal data. They
can also be biometric or health data, which data protection laws such as the EU's General Data
Protection Regulation protect particularly. Tell people that a system infers their emotions, and
delete recordings that are not needed any more.

**Legal limits.** In the European Union, the AI Act (Regulation (EU) 2024/1689) prohibits AI systems
that infer emotions of people at the workplace and in education institutions, except for medical or
safety reasons (Article 5(1)(f), which has applied since 2 February 2025). It lists other systems
for emotion recognition among the high-risk uses (Annex III), and requires that people who are
exposed to such a system are informed (Article 50(3)). Other countries have other rules. This notice
is not legal advice.

**Do not use** the answers to decide about people, for example in hiring, monitoring of employees,
grading, insurance, policing, border control or diagnosis. The licences of a model's weights and of
its training data can restrict its use further; many emotion datasets allow only research.
"""
"""Markdown in lines of at most 100 columns; paragraphs are separated by blank lines."""
