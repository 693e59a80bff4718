"""What jobs.sweep carries out: the kinds of studies, their trials, notes and reports."""
