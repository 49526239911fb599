"""Extractors of published networks: read from local files, run in full float32."""
