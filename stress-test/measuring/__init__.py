"""What the bench is made of: processes and what they use, orders, the generator, the systems compared, the report."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
