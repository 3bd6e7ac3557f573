"""What ``Monitor`` answers and does, part by part."""
