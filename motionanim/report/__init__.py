"""Evaluation runs to tables, paired differences and plots: python -m motionanim.report runs/evaluate/table1"""

from motionanim.report.write import write_report

__all__ = ["write_report"]
