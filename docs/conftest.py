"""The Python examples of the manual run as tests, page by page, in the order of reading."""

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

PAGES = ["dashboard.md", "dashboard_users_and_api.md", "flask.md", "monitor.md", "celery.md", "operating.md"]

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=PAGES).pytest()
