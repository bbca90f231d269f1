"""Generation with an exported model: requests, batches, resumable jobs, and result files."""
