"""Sphinx: the manual."""

project = "eventdriven_sync"
project_copyright = "eventdriven_sync contributors"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
