"""The demo: real datasets made from the documentation that lies on every Python machine."""

from tdro.demo.build import DemoSummary, EvaluationSize, build_demo

__all__ = ["DemoSummary", "EvaluationSize", "build_demo"]
