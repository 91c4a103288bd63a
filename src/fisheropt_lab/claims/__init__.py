"""What the FAdam paper claims, and what the committed results say to it: `fisheropt verdict`."""

from __future__ import annotations

from fisheropt_lab.claims.claims import CLAIMS, Claim
from fisheropt_lab.claims.page import verdict_page

__all__ = ["CLAIMS", "Claim", "verdict_page"]
