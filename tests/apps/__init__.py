"""Small applications that tests run as real processes, and what they are run with."""
