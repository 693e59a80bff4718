"""The schema of the records, version by version, in Alembic's layout: database.py runs what is missing at start.

To change the schema, change the tables in records.py and add a file to versions/; never change one that was released.
"""
