"""What is checked before anything is bought: quotas, zones, image, disks, price. Pure rules on facts.

stacks/preflight.py asks the clouds; `check` decides.
"""

from __future__ import annotations

from provision.preflight.check import check, instance_types
from provision.preflight.facts import Facts, LivePrice, Quota, QuotaQuestion, Unknown
from provision.preflight.findings import Finding, Preflight, read_candidates
from provision.preflight.quotas import in_unit_of, quota_questions
from provision.preflight.rules import disk_category

__all__ = [
    "Facts",
    "Finding",
    "LivePrice",
    "Preflight",
    "Quota",
    "QuotaQuestion",
    "Unknown",
    "check",
    "disk_category",
    "in_unit_of",
    "instance_types",
    "quota_questions",
    "read_candidates",
]
