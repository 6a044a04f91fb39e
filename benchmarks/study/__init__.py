"""The study of docs/study.md: does a learned mixture help, when, and how would one know?"""
