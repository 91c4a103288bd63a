"""The claims of arXiv:2405.12807 that the lab can put to a test, each with the studies that do.

A figure of the paper is quoted only where it could be checked against a source other than memory; where not, `figure`
says so, and the page compares directions.
"""

from __future__ import annotations

from dataclasses import dataclass

UNCHECKED = "not quoted: the table was not at hand when this was written"


@dataclass(frozen=True)
class Claim:
    """One thing the paper says."""

    title: str
    says: str  # in our words
    figure: str  # the paper's own number
    studies: tuple[tuple[str, str], ...]  # (study, task): which results speak to it
    about: tuple[str, ...] = ()  # the entries' keys begin with one of these; empty: all


CLAIMS = (
    Claim(
        "FAdam trains language models better than Adam",
        "Replacing Adam by FAdam lowers the loss of a language model (Section 4.1, PaLM-style decoders on C4).",
        UNCHECKED,
        (("compare", "text"),),
        ("fadam",),
    ),
    Claim(
        "FAdafactor keeps this at Adafactor's memory",
        "The factored FAdam does as FAdam does.",
        UNCHECKED,
        (("compare", "text"),),
        ("fadafactor",),
    ),
    Claim(
        "FAdam trains speech recognition better than Adam",
        "A Conformer trained with FAdam makes fewer word errors on LibriSpeech (Section 4.2).",
        "word error rate of FAdam: 1.34 % on test-clean, 2.49 % on test-other",
        (("compare", "speech"),),
        ("fadam", "fadafactor"),
    ),
    Claim(
        "FAdam trains a VQ-VAE better than Adam",
        "A ViT-VQGAN trained with FAdam reconstructs images better (Section 4.3).",
        UNCHECKED,
        (("compare", "image"),),
        ("fadam", "fadafactor"),
    ),
    Claim(
        "The exponent of the metric is best at 1/2",
        "Of the exponents between 0.3 and 1, the square root trains best and most reliably (Table 2).",
        UNCHECKED,
        (("exponent", "text"), ("exponent", "speech"), ("exponent", "image"), ("exponent", "digits")),
    ),
    Claim(
        "An adaptive epsilon is better than a constant one",
        "An epsilon that follows the gradient does at least as well as the best constant (Table 3).",
        UNCHECKED,
        (("epsilon", "text"), ("epsilon", "speech"), ("epsilon", "image"), ("epsilon", "digits")),
    ),
    Claim(
        "How large the adaptive epsilon is hardly matters",
        "The default eps2 = 0.01 is near the best of a wide range (Table 4).",
        UNCHECKED,
        (("epsilon2", "text"), ("epsilon2", "speech"), ("epsilon2", "image"), ("epsilon2", "digits")),
    ),
    Claim(
        "Weight decay belongs into the Fisher metric",
        "Decay in the Fisher metric gains where Adam's decay does not (Tables 5 and 6).",
        UNCHECKED,
        (("weight-decay", "text"), ("weight-decay", "speech"), ("weight-decay", "image"), ("weight-decay", "digits")),
    ),
    Claim(
        "A discrete likelihood suits Adam and FAdam better than a continuous one",
        "Cross-entropy trains better than a squared error, as its gradients carry the Fisher information (Fig. 1c).",
        UNCHECKED,
        (("loss", "image"), ("loss", "digits")),
    ),
    Claim(
        "Which of FAdam's changes does the work",
        "The paper changes five things at once and does not take them apart; here each is taken back alone.",
        "none",
        (("changes", "text"), ("changes", "digits"), ("changes", "speech"), ("changes", "image")),
    ),
)
