"""What jobs.bench measures, a module each."""
