"""Reports of evaluation runs: tables, paired differences and plots.

python -m motionanim.evaluation.report runs/evaluate/table1
"""

from motionanim.evaluation.report.write import write_report

__all__ = ["write_report"]
