from megabert.serving.page.report import write_report

__all__ = ["write_report"]
