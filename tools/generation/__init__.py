"""Generation with an exported model: batches of requests, jobs that can be continued, and what they leave."""
