"""Score a retriever on evaluation tasks and compare scores."""
