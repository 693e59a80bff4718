"""What jobs.evaluate measures: searches, judges, panels, suites, VBench and what people prefer."""
