"""The doctests here are in the pages; these two modules belong to Sphinx, which the tests can do without."""

collect_ignore = ["conf.py", "reference_pages.py"]
