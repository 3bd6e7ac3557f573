"""Event stores: MongoDB, and one in memory for tests."""
