"""Batch jobs: rows of a file in, answers out, exactly one for each row however often the job is interrupted."""
