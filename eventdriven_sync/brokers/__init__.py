"""Brokers: NATS JetStream, and one in memory for tests."""
